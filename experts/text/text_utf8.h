/* Unicode helpers private to experts/text/: what tokenizers and templates share and base/ does not
 * offer. Every function is pure; any thread. */
#ifndef SWITCHYARD_EXPERTS_TEXT_UTF8_H
#define SWITCHYARD_EXPERTS_TEXT_UTF8_H

#include "base/base.h"

/* Bytes of the character at s (len > 0), and its code point. Bytes that start no character count
 * as one maximal invalid part (Unicode 15, 3.9 "U+FFFD substitution of maximal subparts", the
 * WHATWG decoder): *ret_cp is then U+FFFD and *ret_valid false. */
size_t text_utf8_next(const char *s, size_t len, uint32_t *ret_cp, bool *ret_valid);
/* True if s is an unfinished but so far valid start of one character (len in 1..3). */
bool text_utf8_torn(const char *s, size_t len);
/* Append s with every maximal invalid part replaced by U+FFFD. */
void text_utf8_sanitize(const char *s, size_t len, struct buf *out);

/* Length in bytes of a character from its first byte; s must be valid UTF-8. */
static inline size_t text_utf8_step(char first)
{
    unsigned char c = (unsigned char)first;
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}
/* The code point at s and its length; s must be valid UTF-8. */
static inline uint32_t text_utf8_get(const char *s, size_t *ret_step)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *ret_step = 1;
        return u[0];
    }
    if (u[0] < 0xE0) {
        *ret_step = 2;
        return (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
    }
    if (u[0] < 0xF0) {
        *ret_step = 3;
        return (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
    }
    *ret_step = 4;
    return (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 |
           (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
}
/* Characters in valid UTF-8. */
size_t text_utf8_count(const char *s, size_t len);
/* Bytes of the first `chars` characters (all of s if it has fewer). */
size_t text_utf8_offset(const char *s, size_t len, size_t chars);

/* What Python's str.isspace() calls white space: Unicode's White_Space and U+001C..U+001F. */
bool text_is_space(uint32_t cp);

#endif
