import os
import re
import sys

sys.path.insert(0, os.getcwd())
named = re.search(r"DJANGO_SETTINGS_MODULE['\"]\s*,\s*['\"]([\w.]+)", open("manage.py").read())
if named:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", named[1])
from django.conf import settings

if "django.contrib.staticfiles" not in settings.INSTALLED_APPS:
    word = "NO-APP"
else:
    word = "COLLECT" if settings.STATIC_ROOT else "NO-ROOT"
print("\nANSWER", word)
