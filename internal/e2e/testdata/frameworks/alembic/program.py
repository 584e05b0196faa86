import os
import sys
import time

from alembic import command as alembic
from alembic.config import Config
from sqlalchemy import Column, Integer, String, create_engine, func
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, declarative_base

sys.dont_write_bytecode = True
command, path = sys.argv[1], sys.argv[2]
url = "sqlite:///" + path
Base = declarative_base()


class Item(Base):
    __tablename__ = "items"
    id = Column(Integer, primary_key=True)
    who = Column(String, nullable=False)
    n = Column(Integer, nullable=False)


def migrate(revision):
    cfg = Config()
    cfg.set_main_option("script_location", os.path.dirname(os.path.abspath(__file__)))
    cfg.set_main_option("sqlalchemy.url", url)
    alembic.upgrade(cfg, revision)


engine = create_engine(url, connect_args={"timeout": 5})
if command == "migrate":
    migrate("1")
elif command == "migrate2":
    migrate("2")
elif command == "work":
    who = sys.argv[3]
    try:
        for n in range(1, int(sys.argv[4]) + 1):
            with Session(engine) as s, s.begin():
                s.add(Item(who=who, n=n))
                s.flush()
                count = s.query(func.count(Item.id)).filter(Item.who == who).scalar()
            assert count == n, (count, n)
            print(n, flush=True)
            time.sleep(0.005)  # two that never pause starve each other, on any disk
    except DBAPIError as e:
        print("error:", e.orig, flush=True)
elif command == "check":
    with Session(engine) as s:
        for who, n in s.query(Item.who, func.count(Item.id)).group_by(Item.who).order_by(Item.who):
            print(who, n)
