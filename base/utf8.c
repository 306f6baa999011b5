/* UTF-8 by the table of well-formed byte sequences (Unicode 15, section 3.9, table 3-7): the second
 * byte's range depends on the first, which excludes overlong forms, surrogates and > U+10FFFF. */
#include "base/base.h"

/* Length that the lead byte announces, 0 if it cannot start a character; the bounds are those of
 * the second byte. */
static unsigned lead_length(unsigned char lead, unsigned char *ret_lo, unsigned char *ret_hi)
{
    *ret_lo = 0x80;
    *ret_hi = 0xbf;
    if (lead < 0x80)
        return 1;
    if (lead < 0xc2)
        return 0;
    if (lead < 0xe0)
        return 2;
    if (lead < 0xf0) {
        if (lead == 0xe0)
            *ret_lo = 0xa0;
        else if (lead == 0xed)
            *ret_hi = 0x9f;
        return 3;
    }
    if (lead > 0xf4)
        return 0;
    if (lead == 0xf0)
        *ret_lo = 0x90;
    else if (lead == 0xf4)
        *ret_hi = 0x8f;
    return 4;
}

/* Are bytes 1 .. count-1 right continuations of the lead at s[0]? */
static bool tail_valid(const unsigned char *s, unsigned count, unsigned char lo, unsigned char hi)
{
    if (count > 1 && (s[1] < lo || s[1] > hi))
        return false;
    for (unsigned i = 2; i < count; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return false;
    }
    return true;
}

unsigned utf8_decode(const char *s, size_t len, uint32_t *ret_cp)
{
    const unsigned char *u = (const unsigned char *)s;
    if (len == 0)
        return 0;
    unsigned char lo, hi;
    unsigned n = lead_length(u[0], &lo, &hi);
    if (n == 0 || n > len || !tail_valid(u, n, lo, hi))
        return 0;
    uint32_t cp = n == 1 ? u[0] : u[0] & (0x7fu >> n);
    for (unsigned i = 1; i < n; i++)
        cp = cp << 6 | (u[i] & 0x3fu);
    *ret_cp = cp;
    return n;
}

unsigned utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    unsigned n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (unsigned i = n - 1; i > 0; i--, cp >>= 6)
        out[i] = (char)(0x80u | (cp & 0x3fu));
    out[0] = (char)((0xf00u >> n & 0xf0u) | cp);
    return n;
}

bool utf8_valid(const char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        if ((unsigned char)s[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t cp;
        unsigned n = utf8_decode(s + i, len - i, &cp);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

size_t utf8_complete_prefix(const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    /* Look for a lead byte among the last three that wants more bytes than there are. Bytes that no
     * continuation could make valid are not "inside" a character and stay. */
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        size_t at = len - back;
        if ((u[at] & 0xc0) == 0x80)
            continue;
        unsigned char lo, hi;
        unsigned n = lead_length(u[at], &lo, &hi);
        return n > back && tail_valid(u + at, (unsigned)back, lo, hi) ? at : len;
    }
    return len;
}
