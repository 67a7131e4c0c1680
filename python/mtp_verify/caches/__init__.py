"""Caches of many sequences, beside `mtp_verify.cache`, which serves one."""
