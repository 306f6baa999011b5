/* The state machine of tool_parse.h, a byte at a time. */
#include "daemon/tool_parse.h"

#include <stdlib.h>
#include <string.h>

enum parse_state {
    PARSE_START, /* nothing but blanks so far */
    PARSE_TEXT,  /* text; the held part is the beginning of a marker */
    PARSE_JSON,  /* the answer may be bare JSON calls: all is held */
    PARSE_OPEN,  /* skipping `open` */
    PARSE_NAME,
    PARSE_MIDDLE,
    PARSE_ARGUMENTS,
    PARSE_AFTER, /* between calls, or behind the last one */
};

struct tool_parse {
    struct tool_parse_options opt;
    enum parse_state state;
    struct buf held;  /* text that is undecided */
    struct buf piece; /* arguments of this push */
    size_t matched;   /* bytes of open or middle that were met */
    uint32_t calls, depth;
    bool in_string, escaped;
};

struct tool_parse *tool_parse_open(const struct tool_parse_options *opt)
{
    struct tool_parse *p = mem_alloc(sizeof *p);
    p->opt = *opt;
    if (opt->start == GRAMMAR_TOOLS_AT_NAME)
        p->state = PARSE_NAME;
    return p;
}

void tool_parse_close(struct tool_parse **p)
{
    if (*p != NULL) {
        buf_done(&(*p)->held);
        buf_done(&(*p)->piece);
    }
    free(*p);
    *p = NULL;
}

uint32_t tool_parse_calls(const struct tool_parse *p)
{
    return p->calls;
}

/* ---- giving out -------------------------------------------------------------------------------
 */

static void give_held(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    if (p->held.len > 0)
        emit(ctx, TOOL_PART_TEXT, p->held.data, p->held.len);
    buf_clear(&p->held);
}

static void give_arguments(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    if (p->piece.len > 0)
        emit(ctx, TOOL_PART_ARGUMENTS, p->piece.data, p->piece.len);
    buf_clear(&p->piece);
}

static void begin_call(struct tool_parse *p, const char *name, size_t len, tool_emit *emit,
                       void *ctx)
{
    p->calls++;
    p->depth = 0;
    p->in_string = p->escaped = false;
    emit(ctx, TOOL_PART_CALL, name, len);
}

static bool is_tool(const struct tool_parse *p, const char *name)
{
    for (size_t i = 0; i < json_array_size(p->opt.tools); i++) {
        const json_t *function = json_object_get(json_array_get(p->opt.tools, i), "function");
        const char *known = json_string_value(json_object_get(function, "name"));
        if (known != NULL && strcmp(known, name) == 0)
            return true;
    }
    return false;
}

/* ---- JSON that may be calls
 * ------------------------------------------------------------------------ */

/* Name and arguments of a call in any of the usual shapes; false if it is none. */
static bool read_call(const struct tool_parse *p, const json_t *v, const char **ret_name,
                      const json_t **ret_arguments)
{
    const json_t *inner = json_object_get(v, "function");
    if (json_is_object(inner))
        v = inner;
    const char *name = json_string_value(json_object_get(v, "name"));
    if (name == NULL)
        name = json_string_value(inner);
    const json_t *arguments = json_object_get(v, "arguments");
    if (arguments == NULL)
        arguments = json_object_get(v, "parameters");
    *ret_name = name;
    *ret_arguments = arguments;
    return name != NULL && is_tool(p, name) && json_is_object(arguments);
}

static bool all_are_calls(const struct tool_parse *p, const json_t *list)
{
    const char *name;
    const json_t *arguments;
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!read_call(p, json_array_get(list, i), &name, &arguments))
            return false;
    return json_array_size(list) > 0;
}

static void give_calls(struct tool_parse *p, const json_t *list, tool_emit *emit, void *ctx)
{
    const char *name = NULL;
    const json_t *arguments = NULL;
    for (size_t i = 0; i < json_array_size(list) && p->calls < p->opt.calls_max; i++) {
        if (!read_call(p, json_array_get(list, i), &name, &arguments))
            continue;
        char *text = json_dumps(arguments, JSON_COMPACT);
        begin_call(p, name, strlen(name), emit, ctx);
        if (text != NULL)
            emit(ctx, TOOL_PART_ARGUMENTS, text, strlen(text));
        free(text);
    }
}

/* All values of a text, one after the other with blanks, commas or semicolons between; lists are
 * taken apart. NULL if it is anything else. */
static json_t *read_values(const char *text, size_t len)
{
    json_t *list = json_array();
    while (len > 0) {
        json_error_t where;
        size_t blank = strspn(text, " \t\r\n,;");
        text += blank;
        len -= blank;
        if (len == 0)
            break;
        json_t *v = json_loadb(text, len, JSON_DISABLE_EOF_CHECK, &where);
        if (v == NULL || where.position <= 0 || (size_t)where.position > len) {
            json_decref(v);
            json_decref(list);
            return NULL;
        }
        if (json_is_array(v))
            json_array_extend(list, v);
        else
            json_array_append(list, v);
        json_decref(v);
        text += where.position;
        len -= (size_t)where.position;
    }
    return list;
}

/* The held text as calls; false leaves it held. */
static bool take_as_calls(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    json_t *list = read_values(p->held.data, p->held.len);
    bool calls = list != NULL && all_are_calls(p, list);
    if (calls)
        give_calls(p, list, emit, ctx);
    json_decref(list);
    return calls;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* May the held text become calls? It must begin with { or [, and its first key says. */
static bool may_be_calls(const struct buf *held)
{
    static const char *const keys[] = {"name\"",      "type\"",       "function\"",
                                       "arguments\"", "parameters\"", "id\""};
    size_t i = 0;
    while (i < held->len && (is_blank(held->data[i]) || held->data[i] == '['))
        i++;
    if (i == held->len)
        return true;
    if (held->data[i++] != '{')
        return false;
    while (i < held->len && is_blank(held->data[i]))
        i++;
    if (i == held->len)
        return true;
    if (held->data[i++] != '"')
        return false;
    for (size_t k = 0; k < BASE_COUNT(keys); k++) {
        size_t n = BASE_MIN(strlen(keys[k]), held->len - i);
        if (memcmp(held->data + i, keys[k], n) == 0)
            return true;
    }
    return false;
}

/* ---- text and markers -------------------------------------------------------------------------
 */

static void push_byte(struct tool_parse *p, char c, tool_emit *emit, void *ctx);

/* What was held is text after all; a marker may stand in it. */
static void become_text(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    struct buf held = p->held;
    p->held = (struct buf){0};
    p->state = PARSE_TEXT;
    for (size_t i = 0; i < held.len; i++)
        push_byte(p, held.data[i], emit, ctx);
    buf_done(&held);
}

/* How much of the held text's end is the beginning of the marker. */
static size_t marker_begun(const struct tool_parse *p)
{
    const char *marker = p->opt.form->marker;
    size_t n = BASE_MIN(strlen(marker), p->held.len);
    if (p->opt.form->anchored || !p->opt.constrained)
        return 0;
    while (n > 0 && memcmp(p->held.data + p->held.len - n, marker, n) != 0)
        n--;
    return n;
}

static void found_marker(struct tool_parse *p)
{
    buf_clear(&p->held);
    p->matched = 0;
    p->state = p->opt.form->open[0] != 0 ? PARSE_OPEN : PARSE_NAME;
}

static void text_byte(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    size_t begun = marker_begun(p), shown = p->held.len - begun;
    if (shown > 0) {
        emit(ctx, TOOL_PART_TEXT, p->held.data, shown);
        memmove(p->held.data, p->held.data + shown, begun);
        p->held.len = begun;
    }
    if (begun > 0 && begun == strlen(p->opt.form->marker))
        found_marker(p);
}

/* The first bytes decide between a call, JSON and text; an anchored marker counts only here. */
static void start_byte(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    const struct grammar_call_form *f = p->opt.form;
    size_t len = p->held.len, marker_len = strlen(f->marker), blanks = 0;
    if (f->anchored && p->opt.constrained && len <= marker_len &&
        memcmp(p->held.data, f->marker, len) == 0) {
        if (len == marker_len)
            found_marker(p);
        return;
    }
    while (blanks < len && is_blank(p->held.data[blanks]))
        blanks++;
    if (blanks == len)
        return;
    if (may_be_calls(&p->held))
        p->state = PARSE_JSON;
    else
        become_text(p, emit, ctx);
}

/* ---- calls in the model's form ------------------------------------------------------------------
 */

/* True when `c` is the last byte of `text`. */
static bool skip_byte(struct tool_parse *p, const char *text)
{
    p->matched++;
    return text[p->matched] == 0;
}

static void name_byte(struct tool_parse *p, char c, tool_emit *emit, void *ctx)
{
    const char *middle = p->opt.form->middle;
    if (c != middle[0]) {
        buf_append(&p->held, &c, 1);
        return;
    }
    begin_call(p, p->held.data != NULL ? p->held.data : "", p->held.len, emit, ctx);
    buf_clear(&p->held);
    p->matched = 1;
    p->state = middle[1] != 0 ? PARSE_MIDDLE : PARSE_ARGUMENTS;
}

static void arguments_byte(struct tool_parse *p, char c)
{
    if (p->depth == 0 && is_blank(c))
        return; /* the end of what stood in the prompt */
    buf_append(&p->piece, &c, 1);
    if (p->escaped) {
        p->escaped = false;
    } else if (p->in_string) {
        p->escaped = c == '\\';
        p->in_string = c != '"';
    } else if (c == '"') {
        p->in_string = true;
    } else if (c == '{' || c == '[') {
        p->depth++;
    } else if ((c == '}' || c == ']') && --p->depth == 0) {
        p->state = PARSE_AFTER;
    }
}

/* The grammar lets only one thing follow a call: another one. */
static void after_byte(struct tool_parse *p, char c)
{
    const char *again = p->opt.form->again;
    size_t len = strlen(again);
    buf_append(&p->held, &c, 1);
    if (p->held.len < len || memcmp(p->held.data + p->held.len - len, again, len) != 0)
        return;
    buf_clear(&p->held);
    p->state = PARSE_NAME;
}

static void push_byte(struct tool_parse *p, char c, tool_emit *emit, void *ctx)
{
    switch (p->state) {
    case PARSE_START:
        buf_append(&p->held, &c, 1);
        start_byte(p, emit, ctx);
        break;
    case PARSE_TEXT:
        buf_append(&p->held, &c, 1);
        text_byte(p, emit, ctx);
        break;
    case PARSE_JSON:
        buf_append(&p->held, &c, 1);
        if (!may_be_calls(&p->held))
            become_text(p, emit, ctx);
        break;
    case PARSE_OPEN:
        if (skip_byte(p, p->opt.form->open))
            p->state = PARSE_NAME;
        break;
    case PARSE_NAME:
        name_byte(p, c, emit, ctx);
        break;
    case PARSE_MIDDLE:
        if (skip_byte(p, p->opt.form->middle))
            p->state = PARSE_ARGUMENTS;
        break;
    case PARSE_ARGUMENTS:
        arguments_byte(p, c);
        if (p->state != PARSE_ARGUMENTS)
            give_arguments(p, emit, ctx);
        break;
    case PARSE_AFTER:
        after_byte(p, c);
        break;
    }
}

void tool_parse_push(struct tool_parse *p, const char *text, size_t len, tool_emit *emit, void *ctx)
{
    if (len > 0 && p->state == PARSE_START && p->opt.start == GRAMMAR_TOOLS_AT_ARGUMENTS) {
        p->state = PARSE_ARGUMENTS;
        begin_call(p, p->opt.name, strlen(p->opt.name), emit, ctx);
    }
    /* One byte at a time; only runs of text are long, and those go out as one piece by their
     * caller. */
    for (size_t i = 0; i < len; i++)
        push_byte(p, text[i], emit, ctx);
    give_arguments(p, emit, ctx);
}

void tool_parse_end(struct tool_parse *p, tool_emit *emit, void *ctx)
{
    if (p->state == PARSE_JSON && !take_as_calls(p, emit, ctx)) {
        become_text(p, emit, ctx); /* JSON of another kind, and behind it there may be a call */
        give_arguments(p, emit, ctx);
    }
    if (p->state == PARSE_START || p->state == PARSE_TEXT)
        give_held(p, emit, ctx);
    buf_clear(&p->held);
}
