"""Vision-language backbones: `BACKBONES` is the table; each turns observations and a sentence into the state of one learnable token."""

BACKBONES = {
    "convolutional": "vla_ros.policies.vlms.convolutional:ConvolutionalBackbone",
    "kosmos2": "vla_ros.policies.vlms.families:Kosmos2",
    "paligemma": "vla_ros.policies.vlms.families:PaliGemma",
    "idefics": "vla_ros.policies.vlms.idefics:Idefics",
    "llava": "vla_ros.policies.vlms.families:Llava",
    "qwen3_5": "vla_ros.policies.vlms.qwen:Qwen35",
    "internvl_qwen2_5": "vla_ros.policies.vlms.families:InternVl",
    "prismatic": "vla_ros.policies.vlms.prismatic:Prismatic",
}
