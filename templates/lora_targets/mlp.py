"""What is trained: LoRA on the MLP layers of each block."""

{% include "lora.py" -%}
