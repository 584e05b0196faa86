import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import django
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction

command, path = sys.argv[1], sys.argv[2]
settings.configure(
    INSTALLED_APPS=["app"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": {"timeout": 5}}},
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    USE_TZ=True,
)
django.setup()
from app.models import Item

if command == "migrate":
    with connection.cursor() as c:
        c.execute("PRAGMA journal_mode=wal")
    call_command("migrate", "app", "0001", verbosity=0)
elif command == "migrate2":
    call_command("migrate", verbosity=0)
elif command == "work":
    who = sys.argv[3]
    try:
        for n in range(1, int(sys.argv[4]) + 1):
            with transaction.atomic():
                Item.objects.create(who=who, n=n)
                count = Item.objects.only("id").filter(who=who).count()
            assert count == n, (count, n)
            print(n, flush=True)
            time.sleep(0.005)  # two that never pause starve each other, on any disk
    except DatabaseError as e:
        print("error:", e, flush=True)
elif command == "check":
    from django.db.models import Count

    for row in Item.objects.values("who").annotate(c=Count("id")).order_by("who"):
        print(row["who"], row["c"])
