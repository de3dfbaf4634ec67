import logging

logging.getLogger("bitnet").setLevel(logging.ERROR)
