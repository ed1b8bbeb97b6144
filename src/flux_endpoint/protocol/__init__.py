"""Everything on the wire: messages, task states, queue names, REST schemas. No I/O."""
