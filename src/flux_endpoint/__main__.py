"""`python -m flux_endpoint` is `flux-endpoint`."""

from flux_endpoint.cli import main

if __name__ == "__main__":
    main()
