"""Flux Endpoint, built from the clone that holds this recipe."""

import os
from pathlib import Path

from spack.package import (
    Executable,
    SkipTest,
    conflicts,
    default_args,
    depends_on,
    join_path,
    license,
    variant,
    version,
    working_dir,
)
from spack_repo.builtin.build_systems.python import PythonPackage

_RUN_ONE_JOB = """
import sys
from flux_endpoint.engine import LocalExecutor

executor = LocalExecutor(nodes=1, cores_per_node=1)
try:
    sys.exit(executor.submit(sys.argv[1]).result(timeout=60))
finally:
    executor.shutdown()
"""

_IMPORT_FLUX = """
from flux_endpoint.engine.flux_bindings import import_flux

print(import_flux().__file__)
"""

# Without MPI_Init, which login nodes of some sites refuse.
_IMPORT_MPI = """
import mpi4py

mpi4py.rc.initialize = False
from mpi4py import MPI

print(MPI.Get_library_version())
"""


class PyFluxEndpoint(PythonPackage):
    """Functions as a service for clusters that run the Flux resource manager.

    Python functions, shell commands and MPI applications are submitted from anywhere; an endpoint
    inside a Flux allocation runs them there. Speaks the Globus Compute wire protocol.
    """

    # The clone that this file is part of: nothing is built that isn't in front of you, and the
    # recipe holds wherever the repository was cloned from. There is no release to name yet.
    git = Path(__file__).resolve().parents[5].as_uri()

    license("Apache-2.0")

    version("main", branch="main")

    variant("flux", default=True, description="Flux itself, and what its Python bindings need")
    variant("service", default=False, description="The REST service")
    variant(
        "postgresql", default=False, when="+service", description="PostgreSQL below the service"
    )
    variant("mpi", default=False, description="MPI for Python functions that run on many ranks")
    variant("multi-user", default=False, description="Templates of multi-user endpoints")

    with default_args(type="build"):
        depends_on("py-hatchling@1.24:")
        depends_on("py-hatch-vcs@0.5:")
        depends_on("py-setuptools-scm@9.2.2:")

    with default_args(type=("build", "run")):
        depends_on("python@3.11:")

        depends_on("py-click@8.1:")
        depends_on("py-dill@0.3.9:")
        depends_on("py-httpx@0.27:")
        depends_on("py-pika@1.3.2:")
        depends_on("py-prometheus-client@0.22:")
        depends_on("py-psutil@5.9:")
        depends_on("py-pydantic@2.8:")
        depends_on("py-pyyaml@6.0:")
        depends_on("py-pyzmq@26.0:")

        depends_on("py-cffi@1.16:", when="+flux")
        depends_on("py-ply@3.11:", when="+flux")

        depends_on("py-alembic@1.13:", when="+service")
        depends_on("py-fastapi@0.115:", when="+service")
        depends_on("py-sqlalchemy@2.0.30:", when="+service")
        depends_on("py-uvicorn@0.30:", when="+service")

        depends_on("py-psycopg@3.1: +c", when="+postgresql")

        depends_on("py-jinja2@3.1.6:", when="+multi-user")
        depends_on("py-jsonschema@4.18:", when="+multi-user")

        depends_on("py-mpi4py@4.0:", when="+mpi")
        depends_on("mpi", when="+mpi")

    # Older ones can't be built for every Python that is allowed here.
    depends_on("flux-core@0.68:", type="run", when="+flux")

    # Which MPI is the site's choice; this one has a floor.
    conflicts("^mpich@:4.1", when="+mpi")

    sanity_check_is_file = ["bin/flux-endpoint"]

    #: Run by `spack install --test=root`; `spack test run` runs whatever is called test_*.
    install_time_test_callbacks = ["test_imports", "test_command", "test_job"]

    @property
    def import_modules(self):
        """Modules that must be importable; those of an extra only where its variant is on."""
        modules = ["flux_endpoint.cli", "flux_endpoint.client", "flux_endpoint.endpoint.runner"]
        if self.spec.satisfies("+service"):
            modules.append("flux_endpoint.service.server")
        if self.spec.satisfies("+postgresql"):
            modules += ["psycopg", "psycopg_c"]  # the second needs the first
        return modules

    def test_imports(self):
        """each part can be imported"""
        self._python()("-c", "\n".join(f"import {name}" for name in self.import_modules))

    def test_command(self):
        """the command answers with its version"""
        said = self._command()("--version", output=str.split, error=str.split)
        assert "flux-endpoint" in said, said

    def test_job(self):
        """a jobspec is built, and runs on the embedded executor"""
        jobspec = self._command()(
            "jobspec", "--format", "json", "--no-environment", "--", "true", output=str.split
        )
        self._python()("-c", _RUN_ONE_JOB, jobspec)

    def test_service(self):
        """the service makes its database's schema"""
        self._needs("+service")
        with working_dir("service", create=True):
            url = f"sqlite:///{Path.cwd() / 'service.db'}"
            self._command()("service", "migrate", "--database-url", url)

    def test_flux(self):
        """the bindings of Flux are found and can be imported"""
        self._needs("+flux")
        self._python()("-c", _IMPORT_FLUX)

    def test_mpi(self):
        """mpi4py loads the MPI library it was built with"""
        self._needs("+mpi")
        self._python()("-c", _IMPORT_MPI)

    def _needs(self, condition):
        if not self.spec.satisfies(condition):
            raise SkipTest(f"only with {condition}")

    def _command(self):
        return self._seeing_itself(Executable(join_path(self.prefix.bin, "flux-endpoint")))

    def _python(self):
        return self._seeing_itself(Executable(self.module.python.path))

    def _seeing_itself(self, program):
        # Just after an install, PYTHONPATH has what the package depends on, but not itself:
        # spack/spack issue 45801.
        paths = [self.module.python_purelib, os.environ.get("PYTHONPATH")]
        program.add_default_env("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        return program
