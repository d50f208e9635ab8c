"""DLM semantics on etcd."""
