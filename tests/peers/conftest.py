from tests.secrecy_fixture import no_secrets_in_logs

__all__ = ["no_secrets_in_logs"]
