"""A preload that starts a thread, which a fork server must not have."""

import threading

threading.Thread(target=threading.Event().wait, name="noisy", daemon=True).start()
