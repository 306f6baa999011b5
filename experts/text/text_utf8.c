/* UTF-8 walking, repair and counting for experts/text/. */
#include "experts/text/text_utf8.h"

#include <string.h>

/* Bytes a sequence with this first byte has, and the bounds of its second byte: the table of
 * well-formed sequences (Unicode 15, table 3-7). 0 = starts nothing. */
static size_t sequence_of(unsigned char first, unsigned char *ret_lo, unsigned char *ret_hi)
{
    *ret_lo = 0x80;
    *ret_hi = 0xBF;
    if (first < 0x80)
        return 1;
    if (first < 0xC2)
        return 0;
    if (first < 0xE0)
        return 2;
    if (first < 0xF0) {
        if (first == 0xE0)
            *ret_lo = 0xA0;
        if (first == 0xED)
            *ret_hi = 0x9F;
        return 3;
    }
    if (first > 0xF4)
        return 0;
    if (first == 0xF0)
        *ret_lo = 0x90;
    if (first == 0xF4)
        *ret_hi = 0x8F;
    return 4;
}

/* Length of the longest start of s that a well-formed character could have; *ret_want its full
 * length (0 if the first byte starts nothing, and then 1 is returned). */
static size_t maximal_part(const char *s, size_t len, size_t *ret_want)
{
    const unsigned char *u = (const unsigned char *)s;
    unsigned char lo, hi;
    size_t want = sequence_of(u[0], &lo, &hi);
    *ret_want = want;
    size_t have = 1;
    while (have < want && have < len && u[have] >= lo && u[have] <= hi) {
        lo = 0x80;
        hi = 0xBF;
        have++;
    }
    return have;
}

size_t text_utf8_next(const char *s, size_t len, uint32_t *ret_cp, bool *ret_valid)
{
    size_t want, step;
    size_t have = maximal_part(s, len, &want);
    *ret_valid = have == want;
    *ret_cp = have == want ? text_utf8_get(s, &step) : 0xFFFD;
    return have;
}

bool text_utf8_torn(const char *s, size_t len)
{
    size_t want;
    return len > 0 && maximal_part(s, len, &want) == len && len < want;
}

void text_utf8_sanitize(const char *s, size_t len, struct buf *out)
{
    size_t from = 0, pos = 0;
    while (pos < len) {
        uint32_t cp;
        bool valid;
        size_t step = text_utf8_next(s + pos, len - pos, &cp, &valid);
        if (!valid) {
            buf_append(out, s + from, pos - from);
            buf_append(out, "\xEF\xBF\xBD", 3);
            from = pos + step;
        }
        pos += step;
    }
    buf_append(out, s + from, len - from);
}

size_t text_utf8_count(const char *s, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)s[i] & 0xC0) != 0x80;
    return n;
}

size_t text_utf8_offset(const char *s, size_t len, size_t chars)
{
    size_t pos = 0;
    while (chars > 0 && pos < len) {
        pos += text_utf8_step(s[pos]);
        chars--;
    }
    return pos;
}

bool text_is_space(uint32_t cp)
{
    if (cp <= 0x20)
        return cp == 0x20 || (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1F);
    if (cp < 0x1680)
        return cp == 0x85 || cp == 0xA0;
    return cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}
