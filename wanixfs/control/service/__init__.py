"""The control plane's services on `grpc.aio`: they translate and authenticate, and decide nothing."""
