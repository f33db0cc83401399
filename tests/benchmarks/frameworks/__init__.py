"""The same federation as a user would write it with other libraries, and with ours: a program each, in a process each.

    flower_peft   Flower's recipe for language models: peft's LoRA, transformers' Trainer, FedAvg, Flower's simulation
    pyreft_loop   a loop around pyreft's ReftTrainer, with FedAvg over its interventions
    ours          our LoRA or LoReFT, in one process or in Flower's simulation

Each is called with the folder that `task.written` has made, and prints what `task.said` says.
"""
