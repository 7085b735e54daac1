"""The settings of the loop: how long, how much at a time, on what, and what is kept."""

from dataclasses import dataclass

from quillgpt.config.batch_ramp import batch_stages
from quillgpt.config.checks import check, check_choice, check_each


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how much at a time, on what, and what is kept."""

    steps: int = 600
    """optimizer steps"""
    minutes: float = 0.0
    """if above 0: choose the steps so that training takes about so many minutes here"""
    batch_tokens: int = 0
    """tokens in one step over all ranks; 0: batch_size * context_length * gradient_accumulation_steps"""
    batch_size: int = 0
    """sequences in a micro-batch; 0: as many as memory holds, at most 32"""
    gradient_accumulation_steps: int = 0
    """micro-batches in one step over all ranks when batch_tokens is 0; 0: 1"""
    batch_ramp: str = ""
    """a batch that grows: its shares @ shares of the steps, as 0.25@0,0.5@0.3,1@0.6; empty: none"""
    seed: int = 1337
    """start of initial weights, data order and dropout"""
    init: str = "scratch"
    """scratch, or the model to start from: a run, gpt2 ... gpt2-xl, a Hugging Face directory, a ckpt.pt"""
    stop_at_loss: float = 0.0
    """if above 0: end at the first evaluation whose held-out loss (nats per token) is at most this"""
    eval_every: int = 200
    """steps between evaluations on held-out text; 0: only at the end"""
    eval_tokens: int = 10_485_760
    """most held-out tokens in one evaluation"""
    eval_iters: int = 0
    """if above 0: evaluate on eval_iters * batch_size * context_length tokens instead (nanoGPT's unit)"""
    eval_tasks: str = ""
    """tasks to score at each evaluation besides the held-out loss, as hellaswag:200,piqa; NAME:200 takes 200 items"""
    task_data: str = "data/tasks"
    """directory with the files of the tasks"""
    eval_only: bool = False
    """evaluate and stop: the run's best checkpoint, or what it starts from, on both splits"""
    save_every: int = 200
    """steps between checkpoints; 0: only at the end"""
    keep_last: int = 2
    """checkpoints to keep besides the best one"""
    log_every: int = 10
    """steps between lines of metrics"""
    sample_every: int = 0
    """steps between samples written to samples/; 0: none"""
    out: str = "auto"
    """run directory; auto: runs/RECIPE"""
    fresh: bool = False
    """refuse to continue a run that is already in the run directory"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """compute type: auto, fp32, bf16, fp16"""
    float32_matmul_precision: str = "high"
    """fp32 products on CUDA: highest (IEEE), high (TF32), medium"""
    compile: str = "auto"
    """torch.compile: auto, on, off"""
    compile_backend: str = "inductor"
    """backend of torch.compile"""
    threads: int = 0
    """CPU threads; 0: one for each core this process may use"""
    dist_backend: str = "auto"
    """between ranks: auto (nccl on CUDA, gloo elsewhere), nccl, gloo"""
    dist_timeout_seconds: int = 600
    """longest wait of a rank for the others"""
    track: str = "none"
    """also send metrics to: none, wandb, tensorboard, trackio"""
    track_project: str = "quillgpt"
    """project name for the tracker"""
    track_name: str = "auto"
    """run name for the tracker; auto: the run directory's name"""

    def __post_init__(self) -> None:
        check_each(self)
        batch_stages(self.batch_ramp)
        counts = ("steps", "batch_tokens", "batch_size", "gradient_accumulation_steps", "eval_every", "eval_iters")
        for name in (*counts, "save_every", "sample_every", "seed"):
            check(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("eval_tokens", "log_every", "keep_last"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "minutes", 0 <= self.minutes <= 1e6, "0 to 1,000,000")
        check(self, "stop_at_loss", self.stop_at_loss >= 0, "0 or more")
        check(self, "threads", 0 <= self.threads <= 1024, "0 to 1,024")
        check(self, "dist_timeout_seconds", 1 <= self.dist_timeout_seconds <= 10**6, "1 to 1,000,000")
        check_choice(self, "dtype", "auto", "fp32", "bf16", "fp16")
        check_choice(self, "compile", "auto", "on", "off")
        check_choice(self, "float32_matmul_precision", "highest", "high", "medium")
        check_choice(self, "dist_backend", "auto", "nccl", "gloo")
