"""What crosses a wire: messages, task states, queue names, REST schemas. Data only, no I/O."""
