from nexus.core.vfs_lock import VFSLockManager
from nexus.testing.vfs_lock import VFSLockSuite


class TestPythonVFSLock(VFSLockSuite):
    def make(self) -> VFSLockManager:
        return VFSLockManager()
