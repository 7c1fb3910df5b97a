#include "args.h"

#include "sharing.h"

#define FEW 16             /* arguments kept on the stack */
#define COMMANDS_MAX 1024  /* names remembered */

/* What is known of a command's name: a bytes object that begins with this, the
 * name's words in RESP behind it. */
struct command {
    uint8_t sharing; /* enum rds_sharing */
    uint8_t words;
    bool reads;      /* it changes nothing */
    char wire[];
};

/* One argument, as bytes that stay put until the piece is dropped. */
struct piece {
    const char *bytes;
    size_t len;
    PyObject *holder; /* owned, or NULL */
    char digits[24];
};

static int data_error(struct core_state *st, const char *format, const char *arg)
{
    PyErr_Format(st->native.data_error, format, arg);
    return -1;
}

/* Turn the exception that is set into a DataError with it as the cause. */
static int chain_data_error(struct core_state *st, const char *message)
{
    PyObject *type, *value, *tb, *new_type, *new_value, *new_tb;

    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    PyErr_Format(st->native.data_error, "%s: %S", message, value != NULL ? value : Py_None);
    PyErr_Fetch(&new_type, &new_value, &new_tb);
    PyErr_NormalizeException(&new_type, &new_value, &new_tb);
    if (new_value != NULL && value != NULL) {
        PyException_SetCause(new_value, Py_NewRef(value));
        PyException_SetContext(new_value, Py_NewRef(value));
    }
    PyErr_Restore(new_type, new_value, new_tb);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return -1;
}

/* ---- the command's name ---------------------------------------------------- */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The next word of [p, end); returns where it ends, NULL when there is none. */
static const char *next_word(const char *p, const char *end, bool split, const char **word)
{
    while (split && p < end && is_space(*p))
        p++;
    if (p >= end)
        return NULL;
    *word = p;
    while (p < end && !(split && is_space(*p)))
        p++;
    return p;
}

/* Whether a command only reads: its name, or its first two words, are in the set
 * that offloop.redis gave.  1, 0, or -1 with an exception set. */
static int only_reads(struct core_state *st, const char *const *words, const size_t *lens,
                      size_t count)
{
    char text[64];
    size_t len = 0, i, k;
    int found = 0;

    if (st->native.reads == NULL)
        return 0;
    for (i = 0; i < count && i < 2 && found == 0; i++) {
        PyObject *name;

        if (len + 1 + lens[i] > sizeof text)
            break;
        if (i > 0)
            text[len++] = ' ';
        for (k = 0; k < lens[i]; k++)
            text[len++] = rds_upper(words[i][k]);
        name = PyUnicode_DecodeLatin1(text, (Py_ssize_t)len, NULL);
        found = name == NULL ? -1 : PySet_Contains(st->native.reads, name);
        Py_XDECREF(name);
    }
    return found;
}

static PyObject *describe_command(struct core_state *st, const char *name, size_t len, bool split)
{
    const char *p = name, *end = name + len, *word = NULL, *words[2];
    size_t size = offsetof(struct command, wire), lens[2], count = 0;
    PyObject *bytes = NULL;
    struct command *command;
    int reads;
    char *at;

    while ((p = next_word(p, end, split, &word)) != NULL) {
        if (count < 2) {
            words[count] = word;
            lens[count] = (size_t)(p - word);
        }
        size += rds_cmd_arg_size((size_t)(p - word));
        count++;
    }
    if (count == 0 || count > 255) {
        data_error(st, "%s", count == 0 ? "The command is empty" : "The command has too many words");
        return NULL;
    }
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes == NULL)
        return NULL;
    command = (struct command *)(void *)PyBytes_AS_STRING(bytes);
    command->words = (uint8_t)count;
    command->sharing = (uint8_t)rds_command_sharing(words[0], lens[0]);
    reads = only_reads(st, words, lens, count);
    if (reads < 0) {
        Py_DECREF(bytes);
        return NULL;
    }
    command->reads = reads == 1;
    at = command->wire;
    for (p = name; (p = next_word(p, end, split, &word)) != NULL;) {
        size_t n = (size_t)(p - word);

        *at++ = '$';
        at += rds_put_decimal(at, n);
        *at++ = '\r';
        *at++ = '\n';
        memcpy(at, word, n);
        at += n;
        *at++ = '\r';
        *at++ = '\n';
    }
    return bytes;
}

/* The description of a command's name: a new reference, or NULL. */
static PyObject *find_command(struct core_state *st, PyObject *name)
{
    PyObject *found;
    const char *text;
    Py_ssize_t len;

    if (PyUnicode_CheckExact(name)) {
        found = PyDict_GetItemWithError(st->native.commands, name);
        if (found != NULL)
            return Py_NewRef(found);
        if (PyErr_Occurred())
            return NULL;
    }
    if (PyUnicode_Check(name)) {
        text = PyUnicode_AsUTF8AndSize(name, &len);
        if (text == NULL) {
            chain_data_error(st, "The command's name cannot be encoded");
            return NULL;
        }
        found = describe_command(st, text, (size_t)len, true);
        if (found != NULL && PyUnicode_CheckExact(name) && len <= 64 &&
            PyDict_GET_SIZE(st->native.commands) < COMMANDS_MAX &&
            PyDict_SetItem(st->native.commands, name, found) < 0)
            Py_CLEAR(found);
        return found;
    }
    if (PyBytes_Check(name)) {
        len = PyBytes_GET_SIZE(name);
        text = PyBytes_AS_STRING(name);
        return describe_command(st, text, (size_t)len, memchr(text, ' ', (size_t)len) != NULL);
    }
    data_error(st, "A command's name must be str or bytes, not '%s'", Py_TYPE(name)->tp_name);
    return NULL;
}

/* ---- arguments --------------------------------------------------------------- */

static int hold(struct piece *piece, PyObject *bytes)
{
    if (bytes == NULL)
        return -1;
    piece->holder = bytes;
    piece->bytes = PyBytes_AS_STRING(bytes);
    piece->len = (size_t)PyBytes_GET_SIZE(bytes);
    return 0;
}

static int take_str(struct core_channel *channel, struct piece *piece, PyObject *arg)
{
    Py_ssize_t len;
    PyObject *bytes;

    if (channel->plain_utf8) {
        piece->bytes = PyUnicode_AsUTF8AndSize(arg, &len);
        if (piece->bytes != NULL) {
            piece->len = (size_t)len;
            return 0;
        }
        return chain_data_error(channel->st, "A string argument cannot be encoded");
    }
    bytes = PyUnicode_AsEncodedString(arg, channel->encoding_utf8, channel->errors_utf8);
    if (bytes == NULL)
        return chain_data_error(channel->st, "A string argument cannot be encoded");
    return hold(piece, bytes);
}

static int take_repr(struct piece *piece, PyObject *arg)
{
    PyObject *text = PyObject_Repr(arg), *bytes = NULL;

    if (text != NULL)
        bytes = PyUnicode_AsUTF8String(text);
    Py_XDECREF(text);
    return hold(piece, bytes);
}

static int take_int(struct piece *piece, PyObject *arg)
{
    int overflow = 0;
    long long value = PyLong_AsLongLongAndOverflow(arg, &overflow);
    char *at = piece->digits;

    if (overflow != 0)
        return take_repr(piece, arg);
    if (value < 0)
        *at++ = '-';
    at += rds_put_decimal(at, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
    piece->bytes = piece->digits;
    piece->len = (size_t)(at - piece->digits);
    return 0;
}

static int take_buffer(struct core_state *st, struct piece *piece, PyObject *arg)
{
    Py_buffer *view;

    /* It keeps the exporter from resizing while we look. */
    piece->holder = PyMemoryView_GetContiguous(arg, PyBUF_READ, 'C');
    if (piece->holder == NULL)
        return chain_data_error(st, "A buffer argument cannot be read");
    view = PyMemoryView_GET_BUFFER(piece->holder);
    piece->bytes = view->buf;
    piece->len = (size_t)view->len;
    return 0;
}

static int take(struct core_channel *channel, struct piece *piece, PyObject *arg)
{
    struct core_state *st = channel->st;
    int rc;

    piece->holder = NULL;
    if (PyUnicode_Check(arg)) {
        rc = take_str(channel, piece, arg);
    } else if (PyBytes_Check(arg)) {
        piece->bytes = PyBytes_AS_STRING(arg);
        piece->len = (size_t)PyBytes_GET_SIZE(arg);
        rc = 0;
    } else if (PyLong_CheckExact(arg)) {
        rc = take_int(piece, arg);
    } else if (PyBool_Check(arg)) {
        return data_error(st, "Invalid input of type: '%s'. Convert to a bytes, string, int or "
                              "float first.", "bool");
    } else if (PyLong_Check(arg) || PyFloat_Check(arg)) {
        rc = take_repr(piece, arg);
    } else if (PyByteArray_Check(arg) || PyMemoryView_Check(arg)) {
        rc = take_buffer(st, piece, arg);
    } else {
        return data_error(st, "Invalid input of type: '%s'. Convert to a bytes, string, int or "
                              "float first.", Py_TYPE(arg)->tp_name);
    }
    if (rc == 0 && piece->len > RDS_MAX_ARG)
        return data_error(st, "%s", "An argument is longer than 512 MiB, which is more than a "
                                    "server takes");
    return rc;
}

/* Which connection a command needs whose arguments decide. */
static enum rds_sharing decide_by_arguments(const struct command *command, const struct piece *pieces,
                                Py_ssize_t count)
{
    const char *argv[FEW], *p = command->wire;
    size_t lens[FEW], argc = 0;
    Py_ssize_t i;

    while (argc < command->words && argc < FEW) {
        lens[argc] = strtoul(p + 1, NULL, 10);
        argv[argc] = strchr(p, '\n') + 1;
        p = argv[argc] + lens[argc] + 2;
        argc++;
    }
    for (i = 0; i < count && argc < FEW; i++, argc++) {
        argv[argc] = pieces[i].bytes;
        lens[argc] = pieces[i].len;
    }
    return rds_command_decide(argc, argv, lens);
}

/* What the server said of a command whose name is in no table. */
static int ask_what_was_learned(struct core_channel *channel, const struct command *command)
{
    return core_channel_learned(channel, strchr(command->wire, '\n') + 1,
                                strtoul(command->wire + 1, NULL, 10));
}

/* Where an encoded command goes: one of the two. */
struct sink {
    struct rds_job *job;
    struct rds_pipeline *pipeline;
};

static int begin(struct rds_cmd *cmd, const struct sink *sink, size_t argc, size_t size)
{
    char *at;

    if (sink->job != NULL)
        return rds_cmd_begin(cmd, sink->job, argc, size);
    at = rds_pipeline_room(sink->pipeline, rds_cmd_need(argc, size));
    if (at == NULL)
        return RT_ENOMEM;
    rds_cmd_begin_at(cmd, at, argc, size);
    return RT_OK;
}

static int fill(struct core_state *st, const struct sink *sink, const struct command *command,
                size_t wire_len, const struct piece *pieces, Py_ssize_t count)
{
    size_t size = wire_len, argc = (size_t)count + command->words;
    struct rds_cmd cmd;
    Py_ssize_t i;

    for (i = 0; i < count; i++)
        size += rds_cmd_arg_size(pieces[i].len);
    if (argc > RDS_MAX_ARGC)
        return data_error(st, "%s", "A command has more than 1048576 arguments, which is more than "
                                    "a server takes");
    if (begin(&cmd, sink, argc, size) != RT_OK) {
        PyErr_NoMemory();
        return -1;
    }
    rds_cmd_raw(&cmd, command->wire, wire_len);
    for (i = 0; i < count; i++)
        rds_cmd_arg(&cmd, pieces[i].bytes, pieces[i].len);
    if (sink->job != NULL)
        rds_cmd_end(&cmd);
    else
        rds_pipeline_added(sink->pipeline, rds_cmd_need(argc, size));
    return 0;
}

/* The arguments of a command that is described by `known`. */
static int encode_known(struct core_channel *channel, const struct sink *sink, PyObject *known,
                        PyObject *const *args, Py_ssize_t count, enum rds_sharing *sharing)
{
    struct core_state *st = channel->st;
    struct piece few[FEW], *pieces = few;
    const struct command *command;
    Py_ssize_t i, taken = 0;
    int rc = -1;

    command = (const struct command *)(void *)PyBytes_AS_STRING(known);
    *sharing = (enum rds_sharing)command->sharing;
    if (*sharing == RDS_UNKNOWN) {
        int learned = ask_what_was_learned(channel, command);

        if (learned < 0)
            return -1;
        *sharing = (enum rds_sharing)learned;
    }
    if (*sharing == RDS_STATEFUL || *sharing == RDS_UNKNOWN)
        return 0;
    if (count > FEW) {
        pieces = PyMem_Malloc((size_t)count * sizeof *pieces);
        if (pieces == NULL) {
            PyErr_NoMemory();
            goto done;
        }
    }
    for (; taken < count; taken++) {
        if (take(channel, &pieces[taken], args[taken]) < 0) {
            taken++;
            goto done;
        }
    }
    if (*sharing == RDS_DEPENDS)
        *sharing = decide_by_arguments(command, pieces, count);
    if (*sharing == RDS_STATEFUL || (*sharing != RDS_SHARED && sink->job == NULL))
        rc = 0;
    else if ((rc = fill(st, sink, command,
                        (size_t)PyBytes_GET_SIZE(known) - offsetof(struct command, wire), pieces,
                        count)) == 0) {
        if (sink->job != NULL)
            sink->job->reads = command->reads;
        else
            sink->pipeline->writes |= !command->reads;
    }
done:
    for (i = 0; i < taken; i++)
        Py_XDECREF(pieces[i].holder);
    if (pieces != few)
        PyMem_Free(pieces);
    return rc;
}

static int encode(struct core_channel *channel, const struct sink *sink, PyObject *const *args,
                  Py_ssize_t nargs, enum rds_sharing *sharing)
{
    PyObject *found;
    int rc;

    if (nargs < 1)
        return data_error(channel->st, "%s", "The command is empty");
    found = find_command(channel->st, args[0]);
    if (found == NULL)
        return -1;
    rc = encode_known(channel, sink, found, args + 1, nargs - 1, sharing);
    Py_DECREF(found);
    return rc;
}

int core_args_encode(struct core_channel *channel, struct rds_job *job, PyObject *const *args,
                     Py_ssize_t nargs, enum rds_sharing *sharing)
{
    return encode(channel, &(struct sink){ .job = job }, args, nargs, sharing);
}

int core_args_append(struct core_channel *channel, struct rds_pipeline *pipeline,
                     PyObject *const *args, Py_ssize_t nargs)
{
    enum rds_sharing sharing = RDS_SHARED;
    int rc = encode(channel, &(struct sink){ .pipeline = pipeline }, args, nargs, &sharing);

    return rc < 0 ? -1 : sharing == RDS_SHARED;
}

int core_args_encode_known(struct core_channel *channel, struct rds_job *job, PyObject *known,
                           PyObject *const *args, Py_ssize_t count, enum rds_sharing *sharing)
{
    return encode_known(channel, &(struct sink){ .job = job }, known, args, count, sharing);
}

int core_args_append_known(struct core_channel *channel, struct rds_pipeline *pipeline,
                           PyObject *known, PyObject *const *args, Py_ssize_t count)
{
    enum rds_sharing sharing = RDS_SHARED;
    int rc = encode_known(channel, &(struct sink){ .pipeline = pipeline }, known, args, count,
                          &sharing);

    return rc < 0 ? -1 : sharing == RDS_SHARED;
}

PyObject *core_args_describe(struct core_state *st, PyObject *name, bool *shared)
{
    PyObject *found = find_command(st, name);

    if (found != NULL) {
        const struct command *command;

        command = (const struct command *)(void *)PyBytes_AS_STRING(found);
        *shared = command->sharing == RDS_SHARED;
    }
    return found;
}
