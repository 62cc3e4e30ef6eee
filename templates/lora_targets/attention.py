"""What is trained: LoRA on the attention layers of each block."""

{% include "lora.py" -%}
