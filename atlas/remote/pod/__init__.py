"""What runs on the pod. Python's standard library alone (3.8 on), copied there as files.

Every function takes the job's root folder and the time, so that tests call them directly.
"""
