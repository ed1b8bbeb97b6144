"""Psycopg 3: its distribution on PyPI is called `psycopg`, builtin's `py-psycopg2` is another."""

from spack.package import default_args, depends_on, license, variant, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyPsycopg(PythonPackage):
    """Psycopg 3, a PostgreSQL database adapter for Python."""

    homepage = "https://psycopg.org/"
    pypi = "psycopg/psycopg-3.2.13.tar.gz"

    license("LGPL-3.0-only")

    version("3.2.13", sha256="309adaeda61d44556046ec9a83a93f42bbe5310120b1995f3af49ab6d9f13c1d")

    variant("c", default=True, description="Build the C extension, linked with this libpq")

    depends_on("py-setuptools@49.2:", type="build")

    with default_args(type=("build", "run")):
        depends_on("python@3.8:")
        depends_on("py-typing-extensions@4.6:", when="^python@:3.12")
        depends_on("py-psycopg-c@3.2.13", when="@3.2.13 +c")

    # Without the extension it looks for libpq when it is imported.
    depends_on("postgresql@10:", type="run", when="~c")

    @property
    def import_modules(self):
        """Modules that must be importable; without the extension they need libpq on a path."""
        return ["psycopg", "psycopg_c"] if self.spec.satisfies("+c") else []
