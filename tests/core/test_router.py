from nexus.core.router import VFSRouter
from nexus.testing.router import RouterSuite


class TestPythonRouter(RouterSuite):
    def make(self) -> VFSRouter[str]:
        return VFSRouter()
