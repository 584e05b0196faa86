from django.db import models


class Item(models.Model):
    who = models.CharField(max_length=100, db_index=True)
    n = models.IntegerField()
