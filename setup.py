"""Packaging of balena_agent: the version lives in balena_agent/__init__.py, nowhere else."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "balena_agent/__init__.py").read_text())
assert VERSION, "no version in balena_agent/__init__.py"

setup(
    name="balena-agent",
    version=VERSION.group(1),
    description="systemd-native agent that keeps the containers of an IoT device in their target",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["balena_agent", "balena_agent.*"]),
    package_data={"balena_agent.api": ["openapi.json"]},
    install_requires=[
        "bottle>=0.12.25,<0.14",
        "cheroot>=10,<12",
        "configobj>=5.0.8,<6",
        "dbus-next==0.2.3",
        "docker>=7,<8",
        "requests>=2.31,<3",
        "sdnotify>=0.3.2,<0.4",
        "systemd-python>=234,<236",
    ],
    extras_require={
        "test": [
            "pytest>=8,<9",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.6,<1",
            "mypy>=1.10,<2",
            "schemathesis>=4,<5",
        ]
    },
    entry_points={
        "console_scripts": [
            "balena-agent = balena_agent.__main__:main",
            "balena-agentctl = balena_agent.ctl:main",
        ]
    },
)
