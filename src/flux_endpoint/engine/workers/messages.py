"""What the pool and its managers say to each other: a kind, then parts.

From the pool:

- `held?`, a question's number: what is here?
- `go`, ids: from now on, tasks may be started; these are wanted by nobody.
- `tasks`, then header and buffer of each.
- `return`, how many tasks are wanted back that have not begun.
- `safe`, ids: the ends of these are on disk.
- `cancel`, an id; `signal`, a number and an id; `terminate`, why; `stop`.

To the pool:

- `hello`, a JSON object: first, on each connection. Nothing is started before `go`.
- `held`, the question's number, a JSON object: ids that are `waiting`, when each that is `running`
  began, ids that have `ended`.
- `ends`, a JSON object, then header and body of each (`spool.EndHeader`); again on each connection,
  until they are `safe`.
- `returned`, ids of tasks that have not begun; `late`, ids of those that must not any more.
- `running`, id and start of a task that takes long.
- `output`, what workers have printed.
- `bye`, a JSON object: it ends; when each task began that was `running`. The others never began.

A manager's identity on ZeroMQ is a secret between the agent that starts it, the manager, and the
agents to come, which read it in the engine's directory: nobody else can speak in its name. Across
hosts the connection is encrypted (CURVE), and the pool is known by its key.
"""
