/* Streaming detokeniser: tokens may end inside a character; what a client sees never does. */
#include "experts/experts.h"
#include "experts/text/text_utf8.h"

#include <string.h>

/* Append all whole characters of s, parts that can never become one as U+FFFD; returns where the
 * unfinished tail begins (len = none). */
static size_t append_whole(const char *s, size_t len, struct buf *out)
{
    size_t tail = len;
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        if (((unsigned char)s[len - back] & 0xC0) != 0x80) {
            if (text_utf8_torn(s + len - back, back))
                tail = len - back;
            break;
        }
    }
    if (tail > 0)
        text_utf8_sanitize(s, tail, out);
    return tail;
}

void detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out)
{
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(t, id, false, &len);
    if (bytes == NULL || len == 0)
        return;
    if (d->held_len == 0) {
        size_t tail = append_whole(bytes, len, out);
        d->held_len = len - tail;
        memcpy(d->held, bytes + tail, d->held_len);
        return;
    }
    struct buf joined = {0};
    buf_append(&joined, d->held, d->held_len);
    buf_append(&joined, bytes, len);
    size_t tail = append_whole(joined.data, joined.len, out);
    d->held_len = joined.len - tail;
    memcpy(d->held, joined.data + tail, d->held_len);
    buf_done(&joined);
}

void detok_end(struct detok *d, struct buf *out)
{
    if (d->held_len > 0)
        text_utf8_sanitize(d->held, d->held_len, out);
    d->held_len = 0;
}
