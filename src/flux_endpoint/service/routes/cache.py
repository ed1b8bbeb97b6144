"""Routes of the cache of results: which of a user's tasks had a call before."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.exc import IntegrityError

from flux_endpoint.protocol.rest import (
    CacheAnswer,
    CachedFunction,
    CacheEntries,
    CacheQuery,
    Name,
)
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.store import cache

router = APIRouter()

# Two requests may note the same call, or the retention may remove a task, at the same time.
_ATTEMPTS = 3


@router.post("/v3/cache/find", response_model=CacheEntries)
def find(request: CacheQuery, service: Service, caller: Caller) -> CacheEntries:
    """Return the caller's tasks that had these calls and succeeded."""
    with service.database.read() as connection:
        return CacheEntries(tasks=cache.find(connection, caller.id, request.keys))


@router.post("/v3/cache", status_code=204)
def note(request: CacheEntries, service: Service, caller: Caller) -> None:
    """Note the calls of the caller's tasks; unknown tasks are left out."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with service.database.write() as connection:
                cache.add(connection, caller.id, request.tasks)
        except IntegrityError:
            if attempt == _ATTEMPTS:
                raise
        else:
            return


@router.get("/v3/cache", response_model=CacheAnswer)
def read(service: Service, caller: Caller) -> CacheAnswer:
    """Return how many results of which functions the cache has for the caller."""
    with service.database.read() as connection:
        found = cache.contents(connection, caller.id)
    functions = [
        CachedFunction(
            function_name=each.function_name,
            results=each.results,
            bytes=each.size,
            newest=each.newest,
        )
        for each in found
    ]
    return CacheAnswer(results=sum(each.results for each in functions), functions=functions)


@router.delete("/v3/cache", response_model=CacheAnswer)
def clear(
    service: Service,
    caller: Caller,
    function_name: Annotated[Name | None, Query()] = None,
) -> CacheAnswer:
    """Forget all calls of the caller, or those of functions of one name; return how many."""
    with service.database.write() as connection:
        return CacheAnswer(results=cache.clear(connection, caller.id, function_name))
