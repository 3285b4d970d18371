"""What a data set of Hugging Face's `datasets` looks like from outside, in a few lines: that package is not needed."""


class Image:
    """As the type of a column."""


class Value:
    """As the type of a column."""


class ClassLabel:
    """As the type of a column."""

    def __init__(self, names):
        self.names = names


class Table:
    """columns: name -> values. types: name -> type, of those that have one."""

    def __init__(self, columns, **types):
        self.columns = columns
        self.features = {name: types.get(name, Value()) for name in columns}
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}
