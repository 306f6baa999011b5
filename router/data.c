/* Labelled rows from JSON lines. */
#include "router/router.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define DATA_BYTES_MAX BASE_GIB

static struct router_row *add_row(struct router_data *d, size_t *cap)
{
    if (d->count == *cap) {
        *cap = *cap ? 2 * *cap : 1024;
        d->rows = mem_grow(d->rows, *cap, sizeof(*d->rows));
    }
    struct router_row *row = &d->rows[d->count++];
    *row = (struct router_row){0};
    return row;
}

/* A string field, NULL if it is absent or of another type. */
static const char *string_field(json_t *object, const char *key, size_t *ret_len)
{
    json_t *value = json_object_get(object, key);
    *ret_len = value ? json_string_length(value) : 0;
    return json_string_value(value);
}

static enum err_code check_label(const char *label, size_t len, struct err *e)
{
    if (!label)
        return err_set_param(e, ERR_INVALID, "expert", "\"expert\" must be a string");
    if (len == 0 || len >= ROUTER_NAME_MAX)
        return err_set_param(e, ERR_INVALID, "expert", "\"expert\" must have 1 to %d bytes",
                             ROUTER_NAME_MAX - 1);
    return ERR_OK;
}

/* Texts of the conversation so far; the separator inside a text would forge a turn. */
static void append_turn(struct buf *b, const char *text, size_t len)
{
    if (b->len > 0)
        buf_append(b, &(char){ROUTER_TURN_SEP}, 1);
    size_t from = b->len;
    buf_append(b, text, len);
    for (size_t i = from; i < b->len; i++)
        if (b->data[i] == ROUTER_TURN_SEP)
            b->data[i] = ' ';
}

static enum err_code load_text(json_t *object, struct buf *so_far, const char *kind,
                               struct router_data *d, size_t *cap, struct err *e)
{
    size_t text_len, label_len, ignored;
    const char *text = string_field(object, "text", &text_len);
    const char *label = string_field(object, "expert", &label_len);
    if (!text)
        return err_set_param(e, ERR_INVALID, "text", "\"text\" must be a string");
    enum err_code code = check_label(label, label_len, e);
    if (code != ERR_OK)
        return code;
    append_turn(so_far, text, text_len);
    const char *source = string_field(object, "source", &ignored);
    const char *own_kind = string_field(object, "kind", &ignored);
    struct router_row *row = add_row(d, cap);
    row->text = mem_strndup(so_far->data ? so_far->data : "", so_far->len);
    row->expert = mem_strdup(label);
    row->source = mem_strdup(source ? source : "");
    row->kind = mem_strdup(own_kind ? own_kind : kind);
    return ERR_OK;
}

static enum err_code load_turns(json_t *turns, struct router_data *d, size_t *cap, struct err *e)
{
    if (!json_is_array(turns))
        return err_set_param(e, ERR_INVALID, "turns", "\"turns\" must be an array of objects");
    struct buf so_far = {0};
    enum err_code code = ERR_OK;
    for (size_t i = 0; code == ERR_OK && i < json_array_size(turns); i++) {
        json_t *turn = json_array_get(turns, i);
        const char *kind = json_is_true(json_object_get(turn, "followup")) ? "followup" : "turn";
        code = load_text(turn, &so_far, kind, d, cap, e);
    }
    buf_done(&so_far);
    return code;
}

static enum err_code load_line(const char *line, size_t len, struct router_data *d, size_t *cap,
                               struct err *e)
{
    json_error_t why;
    json_t *object = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
    if (!object)
        return err_set(e, ERR_INVALID, "not JSON: %s at column %d", why.text, why.column);
    enum err_code code;
    struct buf so_far = {0};
    json_t *turns = json_object_get(object, "turns");
    if (!json_is_object(object))
        code = err_set(e, ERR_INVALID, "not a JSON object");
    else if (turns)
        code = load_turns(turns, d, cap, e);
    else
        code = load_text(object, &so_far, "", d, cap, e);
    buf_done(&so_far);
    json_decref(object);
    return code;
}

static bool is_blank(const char *line, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

static enum err_code load_lines(const struct buf *file, struct router_data *d, struct err *e)
{
    size_t cap = 0, line_no = 0;
    const char *at = file->data, *end = file->data + file->len;
    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t len = (size_t)((stop ? stop : end) - at);
        line_no++;
        if (!is_blank(at, len) && load_line(at, len, d, &cap, e) != ERR_OK)
            return err_wrap(e, "line %zu", line_no);
        at = stop ? stop + 1 : end;
    }
    return d->count > 0 ? ERR_OK : err_set(e, ERR_INVALID, "no row in it");
}

enum err_code router_data_load(const char *path, struct router_data *ret, struct err *e)
{
    struct buf file = {0};
    struct router_data d = {0};
    struct err cause = {0};
    enum err_code code = file_read(path, DATA_BYTES_MAX, &file, &cause);
    if (code == ERR_OK)
        code = load_lines(&file, &d, &cause);
    buf_done(&file);
    if (code != ERR_OK) {
        router_data_done(&d);
        err_wrap(&cause, "%s", path);
        if (e)
            *e = cause;
        return code;
    }
    *ret = d;
    return ERR_OK;
}

enum err_code router_data_append(const char *path, struct router_data *d, struct err *e)
{
    struct router_data more;
    enum err_code code = router_data_load(path, &more, e);
    if (code != ERR_OK)
        return code;
    d->rows = mem_grow(d->rows, d->count + more.count, sizeof(*d->rows));
    memcpy(d->rows + d->count, more.rows, more.count * sizeof(*more.rows));
    d->count += more.count;
    free(more.rows);
    return ERR_OK;
}

void router_data_done(struct router_data *d)
{
    for (size_t i = 0; i < d->count; i++) {
        free(d->rows[i].text);
        free(d->rows[i].expert);
        free(d->rows[i].source);
        free(d->rows[i].kind);
    }
    free(d->rows);
    *d = (struct router_data){0};
}
