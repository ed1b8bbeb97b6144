"""The compiled half of Psycopg 3."""

from spack.package import depends_on, license, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyPsycopgC(PythonPackage):
    """C extension of Psycopg 3, linked with libpq."""

    homepage = "https://psycopg.org/"
    pypi = "psycopg_c/psycopg_c-3.2.13.tar.gz"

    license("LGPL-3.0-only")

    version("3.2.13", sha256="3f8d69a563f198198aaf3333e3830c68368a4e45cd60faeabca9949f958f6480")

    depends_on("c", type="build")
    depends_on("py-setuptools@49.2:", type="build")
    depends_on("python@3.8:", type=("build", "link", "run"))
    # pg_config says where libpq is. The sources hold generated C: no Cython.
    depends_on("postgresql@10:", type=("build", "link", "run"))

    # The extension can only be imported by psycopg, which needs it: that is where it is tested.
    import_modules = []
