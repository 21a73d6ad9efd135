import os

with open("f", "w"):
    pass
os.setxattr("f", "user.a", b"one")
os.setxattr("f", "user.b", bytes(1000))
print(sorted(os.listxattr("f")), os.getxattr("f", "user.a"), len(os.getxattr("f", "user.b")))
for call in (
    lambda: os.setxattr("f", "user.a", b"", os.XATTR_CREATE),
    lambda: os.setxattr("f", "user.c", b"", os.XATTR_REPLACE),
    lambda: os.getxattr("f", "user.z"),
    lambda: os.removexattr("f", "user.z"),
    lambda: os.removexattr("f", "user.a"),
):
    try:
        print(call())
    except OSError as error:
        print(error.strerror)
print(sorted(os.listxattr("f")))
