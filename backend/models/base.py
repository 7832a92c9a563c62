"""The base of every table. Constraints get names by a rule, so that a migration can drop one on any database."""

from __future__ import annotations

from sqlalchemy import BigInteger, Float, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

ProjectId = String(40)
HexKey = String(64)
Words = Text()
Bytes = LargeBinary()
Seconds = Float(53)
Amount = Float(53)
Count = BigInteger()


class Base(DeclarativeBase):
    """What all models share."""

    metadata = MetaData(naming_convention=NAMING)
