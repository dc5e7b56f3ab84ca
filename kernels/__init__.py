"""The custom operators: their definition (reference.py), and kernels for host CPUs (cpu/) and Ascend (ascend/)."""

if __name__ == "kernels":  # imported from a checkout by the folder's name: runtime/checkout.py
    import runpy
    from pathlib import Path

    runpy.run_path(str(Path(__file__).parents[1] / "runtime/checkout.py"))["use_folder_name"](__name__)
