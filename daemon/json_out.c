/* JSON leaves. The escape loop runs once per generated token: it copies runs of plain bytes and
 * stops only for the few that need care. */
#include "daemon/json_out.h"

#include <math.h>
#include <string.h>

static void put_escape(struct buf *b, unsigned char c)
{
    switch (c) {
    case '"':
        buf_append(b, "\\\"", 2);
        break;
    case '\\':
        buf_append(b, "\\\\", 2);
        break;
    case '\n':
        buf_append(b, "\\n", 2);
        break;
    case '\r':
        buf_append(b, "\\r", 2);
        break;
    case '\t':
        buf_append(b, "\\t", 2);
        break;
    default:
        buf_printf(b, "\\u%04x", c);
    }
}

void json_put_escaped(struct buf *b, const char *text, size_t len)
{
    size_t from = 0, i = 0;
    while (i < len) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c < 0x7f) {
            i++;
            continue;
        }
        uint32_t cp;
        unsigned n = c >= 0x80 ? utf8_decode(text + i, len - i, &cp) : 0;
        if (n > 0) {
            i += n;
            continue;
        }
        buf_append(b, text + from, i - from);
        if (c >= 0x80)
            buf_append(b, "\xef\xbf\xbd", 3);
        else
            put_escape(b, c);
        from = ++i;
    }
    buf_append(b, text + from, len - from);
}

void json_put_text(struct buf *b, const char *text, size_t len)
{
    buf_append(b, "\"", 1);
    json_put_escaped(b, text, len);
    buf_append(b, "\"", 1);
}

void json_put_str(struct buf *b, const char *text)
{
    if (text == NULL)
        buf_append(b, "null", 4);
    else
        json_put_text(b, text, strlen(text));
}

void json_put_real(struct buf *b, double v, int digits)
{
    if (!isfinite(v))
        buf_append(b, "null", 4);
    else
        buf_printf(b, "%.*g", digits, v);
}

void json_put_ms(struct buf *b, uint64_t ns)
{
    buf_printf(b, "%.3f", (double)ns / 1e6);
}
