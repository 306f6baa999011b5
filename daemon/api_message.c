/* Answers of a chat that may call functions: the message of a whole answer, and the deltas of a
 * stream. */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/json_out.h"

/* ---- whole
 * --------------------------------------------------------------------------------------- */

struct message {
    const struct api_call *call;
    struct buf text, calls;
    uint32_t count;
};

static void close_call(struct message *m)
{
    if (m->count > 0)
        buf_puts(&m->calls, "\"}}");
}

static void collect(void *ctx, enum tool_part part, const char *text, size_t len)
{
    struct message *m = ctx;
    char id[API_TOOL_ID_BYTES];
    if (part == TOOL_PART_TEXT) {
        buf_append(&m->text, text, len);
    } else if (part == TOOL_PART_ARGUMENTS) {
        json_put_escaped(&m->calls, text, len);
    } else {
        close_call(m);
        api_tools_new_id(m->call, id);
        buf_printf(&m->calls, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                   m->count > 0 ? "," : "", id);
        json_put_text(&m->calls, text, len);
        buf_puts(&m->calls, ",\"arguments\":\"");
        m->count++;
    }
}

static bool is_blank(const struct buf *text)
{
    return text->len == 0 || strspn(text->data, " \t\r\n") == text->len;
}

static void put_message(const struct message *m, struct buf *out)
{
    buf_puts(out, "{\"role\":\"assistant\",\"content\":");
    if (m->count > 0 && is_blank(&m->text))
        buf_puts(out, "null");
    else
        json_put_text(out, m->text.data != NULL ? m->text.data : "", m->text.len);
    if (m->count > 0) {
        buf_puts(out, ",\"tool_calls\":[");
        buf_append(out, m->calls.data, m->calls.len);
        buf_puts(out, "]");
    }
    buf_puts(out, ",\"refusal\":null}");
}

bool api_put_tool_message(const struct api_call *c, const struct request_choice *choice,
                          struct buf *out)
{
    struct message m = {.call = c};
    struct tool_parse *parse = api_tools_open_parse(c);
    uint32_t count = request_events(choice);
    for (uint32_t i = 0; i < count; i++)
        tool_parse_push(parse, choice->events[i].text, choice->events[i].text_len, collect, &m);
    tool_parse_end(parse, collect, &m);
    close_call(&m);
    put_message(&m, out);
    tool_parse_close(&parse);
    buf_done(&m.text);
    buf_done(&m.calls);
    return m.count > 0;
}

/* ---- streams
 * --------------------------------------------------------------------------------------- */

struct deltas {
    const struct api_call *call;
    struct api_cursor *cursor;
    struct buf text;
    api_put_delta *put;
    void *ctx;
};

static void flush_text(struct deltas *d)
{
    struct buf delta = {0};
    if (d->text.len == 0)
        return;
    buf_puts(&delta, "{\"content\":");
    json_put_text(&delta, d->text.data, d->text.len);
    buf_puts(&delta, "}");
    d->put(d->ctx, &delta);
    buf_done(&delta);
    buf_clear(&d->text);
}

static void put_begin(const struct deltas *d, const char *name, size_t len, struct buf *delta)
{
    char id[API_TOOL_ID_BYTES];
    api_tools_new_id(d->call, id);
    buf_printf(delta,
               "{\"tool_calls\":[{\"index\":%u,\"id\":\"%s\",\"type\":\"function\",\"function\":{"
               "\"name\":",
               d->cursor->calls++, id);
    json_put_text(delta, name, len);
    buf_puts(delta, ",\"arguments\":\"\"}}]}");
}

static void stream_part(void *ctx, enum tool_part part, const char *text, size_t len)
{
    struct deltas *d = ctx;
    struct buf delta = {0};
    if (part == TOOL_PART_TEXT) {
        buf_append(&d->text, text, len);
        return;
    }
    flush_text(d);
    if (part == TOOL_PART_CALL) {
        put_begin(d, text, len, &delta);
    } else {
        buf_printf(&delta, "{\"tool_calls\":[{\"index\":%u,\"function\":{\"arguments\":",
                   d->cursor->calls - 1);
        json_put_text(&delta, text, len);
        buf_puts(&delta, "}}]}");
    }
    d->put(d->ctx, &delta);
    buf_done(&delta);
}

void api_put_tool_deltas(const struct api_call *c, struct api_cursor *cursor,
                         const struct request_event *ev, api_put_delta *put, void *ctx)
{
    struct deltas d = {.call = c, .cursor = cursor, .put = put, .ctx = ctx};
    if (cursor->parse == NULL)
        cursor->parse = api_tools_open_parse(c);
    tool_parse_push(cursor->parse, ev->text, ev->text_len, stream_part, &d);
    if (ev->finish != REQUEST_FINISH_NONE)
        tool_parse_end(cursor->parse, stream_part, &d);
    flush_text(&d);
    buf_done(&d.text);
}
