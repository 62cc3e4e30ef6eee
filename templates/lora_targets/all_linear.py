"""What is trained: LoRA on all linear layers of each block."""

{% include "lora.py" -%}
