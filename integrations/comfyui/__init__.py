"""Nodes for ComfyUI that render with flux2-queue: copy or link this folder into `custom_nodes`. See docs/comfyui.md."""

from .adapter_node import AdapterNode
from .render_node import RenderNode

NODE_CLASS_MAPPINGS = {"Flux2QueueRender": RenderNode, "Flux2QueueAdapter": AdapterNode}
NODE_DISPLAY_NAME_MAPPINGS = {"Flux2QueueRender": "FLUX.2 Queue: Render", "Flux2QueueAdapter": "FLUX.2 Queue: Adapter"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
