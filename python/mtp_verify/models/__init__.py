"""The target model: its forward, its hidden states, and fast forwards on a CPU (`cpu`)."""
