from django.db import migrations, models


# On SQLite this makes a new table, copies the rows, and renames it.
class Migration(migrations.Migration):
    dependencies = [("app", "0001_initial")]
    operations = [
        migrations.AlterField("item", "n", models.BigIntegerField()),
        migrations.AddIndex("item", models.Index(fields=["n"], name="item_n")),
    ]
