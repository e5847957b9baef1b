import os
import tempfile

# Before JAX starts. The sharded code paths need several devices; most of the suite's time is
# compilation, which is faster without optimisation.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    # Concurrent collectives of eight virtual devices can wait for each other on few cores.
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same train step.
_cache = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
