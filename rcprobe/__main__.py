"""``python -m rcprobe``."""

from rcprobe.cli import main

if __name__ == "__main__":
    main()
