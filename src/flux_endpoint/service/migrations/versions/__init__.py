"""Schema migrations, run by `flux_endpoint.service.store.engine.Database.migrate`."""
