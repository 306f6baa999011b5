/* String work that filters, methods and operators share. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- search and strip ------------------------------------------------------------------------ */

int64_t str_find(const struct str *s, const struct str *needle, size_t from)
{
    if (from > s->len)
        return -1;
    if (needle->len == 0)
        return (int64_t)from;
    const char *at = memmem(s->data + from, s->len - from, needle->data, needle->len);
    return at == NULL ? -1 : at - s->data;
}

/* Is the character at `c` one of `chars`, or white space if that is NULL? */
static bool strippable(const char *c, size_t step, const struct str *chars)
{
    size_t ignored;
    if (chars == NULL)
        return text_is_space(text_utf8_get(c, &ignored));
    for (size_t pos = 0; pos < chars->len;) {
        size_t n = text_utf8_step(chars->data[pos]);
        if (n == step && memcmp(chars->data + pos, c, n) == 0)
            return true;
        pos += n;
    }
    return false;
}

static size_t char_before(const struct str *s, size_t pos)
{
    do {
        pos--;
    } while (((unsigned char)s->data[pos] & 0xC0) == 0x80);
    return pos;
}

struct str *str_strip(struct rt *rt, struct str *s, struct str *chars, int side)
{
    size_t from = 0, to = s->len;
    if (chars != NULL)
        rt_steps(rt, chars->len / 16);
    while (side <= 0 && from < to) {
        size_t step = text_utf8_step(s->data[from]);
        if (!strippable(s->data + from, step, chars))
            break;
        from += step;
    }
    while (side >= 0 && to > from) {
        size_t at = char_before(s, to);
        if (!strippable(s->data + at, to - at, chars))
            break;
        to = at;
    }
    return from == 0 && to == s->len ? s : str_slice(rt, s, from, to - from);
}

struct value str_as(struct rt *rt, struct str *s, bool markup)
{
    if (s->markup == markup)
        return value_str(s);
    struct str *m = str_slice(rt, s, 0, s->len);
    m->markup = markup;
    return value_str(m);
}

/* ---- replace and escape ---------------------------------------------------------------------- */

/* An empty needle is found in front of every character and at the end. */
static struct str *spread(struct rt *rt, struct str *s, const struct str *to, int64_t count)
{
    struct buf *b = rt_take_scratch(rt);
    size_t pos = 0;
    rt_room(rt, (size_t)to->len * (str_chars(s) + 1));
    for (; pos < s->len && count != 0; count -= count > 0) {
        size_t step = text_utf8_step(s->data[pos]);
        buf_append(b, to->data, to->len);
        buf_append(b, s->data + pos, step);
        pos += step;
    }
    if (count != 0)
        buf_append(b, to->data, to->len);
    buf_append(b, s->data + pos, s->len - pos);
    return rt_give_str(rt, b);
}

struct str *str_replace(struct rt *rt, struct str *s, struct str *from, struct str *to,
                        int64_t count)
{
    if (from->len == 0)
        return spread(rt, s, to, count);
    size_t pos = 0;
    int64_t at = count == 0 ? -1 : str_find(s, from, 0);
    if (at < 0)
        return s;
    struct buf *b = rt_take_scratch(rt);
    while (at >= 0 && count != 0) {
        buf_append(b, s->data + pos, (size_t)at - pos);
        buf_append(b, to->data, to->len);
        rt_steps(rt, 1);
        rt_room(rt, b->len);
        pos = (size_t)at + from->len;
        at = str_find(s, from, pos);
        count -= count > 0;
    }
    buf_append(b, s->data + pos, s->len - pos);
    return rt_give_str(rt, b);
}

struct str *str_escape_html(struct rt *rt, struct str *s)
{
    struct buf *b = rt_take_scratch(rt);
    for (uint32_t i = 0; i < s->len; i++) {
        switch (s->data[i]) {
        case '&':
            buf_puts(b, "&amp;");
            break;
        case '<':
            buf_puts(b, "&lt;");
            break;
        case '>':
            buf_puts(b, "&gt;");
            break;
        case '"':
            buf_puts(b, "&#34;");
            break;
        case '\'':
            buf_puts(b, "&#39;");
            break;
        default:
            buf_append(b, &s->data[i], 1);
        }
    }
    return rt_give_str(rt, b);
}

/* ---- lines ----------------------------------------------------------------------------------- */

/* Bytes of the line break at `c`, 0 if there is none: what str.splitlines() breaks at. */
static size_t line_break(const char *c, size_t left)
{
    size_t step;
    uint32_t cp = text_utf8_get(c, &step);
    if (cp == '\r')
        return left > 1 && c[1] == '\n' ? 2 : 1;
    bool breaks = cp == '\n' || cp == 0x0B || cp == 0x0C || (cp >= 0x1C && cp <= 0x1E) ||
                  cp == 0x85 || cp == 0x2028 || cp == 0x2029;
    return breaks ? step : 0;
}

struct list *str_split_lines(struct rt *rt, struct str *s, bool keep_ends)
{
    struct list *l = list_new(rt, 0);
    size_t from = 0;
    for (size_t pos = 0; pos < s->len;) {
        size_t n = line_break(s->data + pos, s->len - pos);
        if (n == 0) {
            pos += text_utf8_step(s->data[pos]);
            continue;
        }
        rt_steps(rt, 1);
        list_push(rt, l, value_str(str_slice(rt, s, from, pos - from + (keep_ends ? n : 0))));
        pos += n;
        from = pos;
    }
    if (from < s->len)
        list_push(rt, l, value_str(str_slice(rt, s, from, s->len - from)));
    return l;
}

/* ---- case ------------------------------------------------------------------------------------ */

/* Characters whose upper case is more than one (Unicode's SpecialCasing.txt, the entries without a
 * condition), as (lower, upper, title); title "" = as upper. */
static const struct {
    uint32_t cp;
    const char *upper, *title;
} special_upper[] = {
    {0xDF, "SS", "Ss"},
    {0x149, "\xCA\xBCN", ""},
    {0x1F0, "J\xCC\x8C", ""},
    {0x390, "\xCE\x99\xCC\x88\xCC\x81", ""},
    {0x3B0, "\xCE\xA5\xCC\x88\xCC\x81", ""},
    {0x587, "\xD4\xB5\xD5\x92", "\xD4\xB5\xD6\x82"},
    {0x1E96, "H\xCC\xB1", ""},
    {0x1E97, "T\xCC\x88", ""},
    {0x1E98, "W\xCC\x8A", ""},
    {0x1E99, "Y\xCC\x8A", ""},
    {0x1E9A, "A\xCA\xBE", ""},
    {0xFB00, "FF", "Ff"},
    {0xFB01, "FI", "Fi"},
    {0xFB02, "FL", "Fl"},
    {0xFB03, "FFI", "Ffi"},
    {0xFB04, "FFL", "Ffl"},
    {0xFB05, "ST", "St"},
    {0xFB06, "ST", "St"},
};

static void put_cp(struct buf *b, uint32_t cp)
{
    char utf8[4];
    buf_append(b, utf8, utf8_encode(cp, utf8));
}

static void put_upper(struct buf *b, uint32_t cp, bool title)
{
    for (size_t i = 0; cp >= 0xDF && i < BASE_COUNT(special_upper); i++) {
        if (special_upper[i].cp == cp) {
            bool own = title && special_upper[i].title[0] != '\0';
            buf_puts(b, own ? special_upper[i].title : special_upper[i].upper);
            return;
        }
    }
    put_cp(b, (uint32_t)(title ? utf8proc_totitle((utf8proc_int32_t)cp)
                               : utf8proc_toupper((utf8proc_int32_t)cp)));
}

static bool is_upper(uint32_t cp)
{
    return utf8proc_isupper((utf8proc_int32_t)cp) != 0;
}

static bool is_lower(uint32_t cp)
{
    return utf8proc_islower((utf8proc_int32_t)cp) != 0;
}

static bool is_cased(uint32_t cp)
{
    return is_upper(cp) || is_lower(cp) ||
           utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_LT;
}

/* A sigma at the end of a word is written another way. */
static bool final_sigma(const struct str *s, size_t pos)
{
    size_t step;
    bool before = pos > 0 && is_cased(text_utf8_get(s->data + char_before(s, pos), &step));
    size_t next = pos + text_utf8_step(s->data[pos]);
    return before && !(next < s->len && is_cased(text_utf8_get(s->data + next, &step)));
}

static void put_lower(struct buf *b, const struct str *s, size_t pos, uint32_t cp)
{
    if (cp == 0x3A3 && final_sigma(s, pos))
        put_cp(b, 0x3C2);
    else if (cp == 0x130)
        buf_puts(b, "i\xCC\x87");
    else
        put_cp(b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
}

static struct str *fold(struct rt *rt, struct str *s)
{
    utf8proc_uint8_t *folded = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)s->data, s->len, &folded,
                                      UTF8PROC_STABLE | UTF8PROC_CASEFOLD);
    if (n < 0)
        rt_fail(rt, ERR_INVALID, "casefold failed: %s", utf8proc_errmsg(n));
    rt_room(rt, (size_t)n);
    struct buf *b = rt_take_scratch(rt);
    buf_append(b, folded, (size_t)n);
    free(folded);
    return rt_give_str(rt, b);
}

/* Case of ASCII text, the common kind, without tables. */
static struct str *ascii_case(struct rt *rt, const struct str *s, bool upper)
{
    char *out = rt_chars(rt, s->len);
    for (uint32_t i = 0; i < s->len; i++) {
        char c = s->data[i];
        bool change = upper ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z';
        out[i] = change ? (char)(c ^ 0x20) : c;
    }
    struct str *r = str_wrap(rt, out, s->len);
    r->chars = r->len;
    return r;
}

struct str *str_case(struct rt *rt, struct str *s, enum text_case how)
{
    if (s->len == 0)
        return s;
    if (str_ascii(s) && (how == CASE_UPPER || how == CASE_LOWER || how == CASE_FOLD))
        return ascii_case(rt, s, how == CASE_UPPER);
    if (how == CASE_FOLD)
        return fold(rt, s);
    struct buf *b = rt_take_scratch(rt);
    bool word = false; /* inside a word, for title */
    for (size_t pos = 0, step; pos < s->len; pos += step) {
        uint32_t cp = text_utf8_get(s->data + pos, &step);
        bool upper = how == CASE_UPPER || (how == CASE_TITLE && !word) ||
                     (how == CASE_CAPITALIZE && pos == 0) || (how == CASE_SWAP && is_lower(cp));
        if (upper)
            put_upper(b, cp, how == CASE_TITLE || how == CASE_CAPITALIZE);
        else if (how == CASE_SWAP && !is_upper(cp))
            put_cp(b, cp);
        else
            put_lower(b, s, pos, cp);
        word = is_cased(cp);
    }
    return rt_give_str(rt, b);
}

bool str_is_upper(const struct str *s)
{
    bool some = false;
    for (size_t pos = 0, step; pos < s->len; pos += step) {
        uint32_t cp = text_utf8_get(s->data + pos, &step);
        if (is_lower(cp) || (is_cased(cp) && !is_upper(cp)))
            return false;
        some |= is_upper(cp);
    }
    return some;
}

bool str_is_lower(const struct str *s)
{
    bool some = false;
    for (size_t pos = 0, step; pos < s->len; pos += step) {
        uint32_t cp = text_utf8_get(s->data + pos, &step);
        if (is_cased(cp) && !is_lower(cp))
            return false;
        some |= is_lower(cp);
    }
    return some;
}

bool str_is_title(const struct str *s)
{
    bool word = false, some = false;
    for (size_t pos = 0, step; pos < s->len; pos += step) {
        uint32_t cp = text_utf8_get(s->data + pos, &step);
        if (is_cased(cp) && is_lower(cp) != word)
            return false;
        some |= is_cased(cp);
        word = is_cased(cp);
    }
    return some;
}

bool text_is_word(uint32_t cp)
{
    if (cp == '_')
        return true;
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_LO || c == UTF8PROC_CATEGORY_ND ||
           c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}
