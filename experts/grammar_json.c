/* JSON's own parts as rules: strings with escapes and valid UTF-8 only, numbers of bounded length, any
 * value, and exact ranges of numbers. White space is at most one character wherever it may stand, so
 * that a model cannot walk in it for ever. */
#include "experts/grammar.h"

#include <string.h>

#define DIGITS_WHOLE 15U /* what a double holds exactly */
#define DIGITS_INTEGER 18U /* what fits 64 bits */

uint32_t gb_space(struct gbuild *b, uint32_t next)
{
    return gb_split(b, next, gb_split(b, gb_byte(b, ' ', ' ', next), gb_byte(b, '\n', '\n', next)));
}

/* ---- strings ----------------------------------------------------------------------------------- */

static uint32_t hex(struct gbuild *b, uint32_t count, uint32_t next)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t letters = gb_split(b, gb_byte(b, 'a', 'f', next), gb_byte(b, 'A', 'F', next));
        next = gb_split(b, gb_byte(b, '0', '9', next), letters);
    }
    return next;
}

static uint32_t either(struct gbuild *b, uint8_t lo, uint8_t hi, uint32_t next)
{
    uint8_t fold = 'a' - 'A';
    return gb_split(b, gb_byte(b, lo, hi, next),
                    gb_byte(b, (uint8_t)(lo + fold), (uint8_t)(hi + fold), next));
}

/* After "\u": a code unit that is no surrogate, or a pair of them. */
static uint32_t code_unit(struct gbuild *b, uint32_t next)
{
    uint32_t three = hex(b, 3, next), two = hex(b, 2, next);
    uint32_t out = gb_byte(b, '0', '9', three);
    out = gb_split(b, out, either(b, 'A', 'C', three));
    out = gb_split(b, out, either(b, 'E', 'F', three));
    out = gb_split(b, out, either(b, 'D', 'D', gb_byte(b, '0', '7', two)));
    uint32_t low = gb_text(b, "\\u", 2, either(b, 'D', 'D', either(b, 'C', 'F', two)));
    uint32_t after_low = hex(b, 2, low);
    uint32_t high = gb_split(b, gb_byte(b, '8', '9', after_low), either(b, 'A', 'B', after_low));
    return gb_split(b, out, either(b, 'D', 'D', high));
}

static uint32_t plain_char(struct gbuild *b, uint32_t next)
{
    uint32_t out = gb_code_points(b, 0x20, '"' - 1, next);
    out = gb_split(b, out, gb_code_points(b, '"' + 1, '\\' - 1, next));
    return gb_split(b, out, gb_code_points(b, '\\' + 1, 0x10ffff, next));
}

static uint32_t any_char(struct gbuild *b, uint32_t next)
{
    uint32_t escape = gb_byte(b, 'u', 'u', code_unit(b, next));
    for (const char *c = "\"\\/bfnrt"; *c; c++)
        escape = gb_split(b, escape, gb_byte(b, (uint8_t)*c, (uint8_t)*c, next));
    return gb_split(b, plain_char(b, next), gb_byte(b, '\\', '\\', escape));
}

static uint32_t one_escaped(struct gbuild *b, uint32_t cp, uint32_t next)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    char text[8];
    const char *at = cp ? memchr(from, (int)cp, sizeof from - 1) : NULL;
    if (at != NULL)
        snprintf(text, sizeof text, "\\%c", to[at - from]);
    else
        snprintf(text, sizeof text, "\\u%04x", cp & 0xffff);
    return gb_text(b, text, strlen(text), next);
}

uint32_t gb_json_code_points(struct gbuild *b, uint32_t lo, uint32_t hi, uint32_t next)
{
    static const struct grange plain[] = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x10ffff}};
    uint32_t out = GNODE_IDX_FAIL;
    for (size_t i = 0; i < BASE_COUNT(plain); i++) {
        uint32_t l = BASE_MAX(lo, plain[i].lo), h = BASE_MIN(hi, plain[i].hi);
        if (l <= h)
            out = gb_split(b, out, gb_code_points(b, l, h, next));
    }
    for (uint32_t cp = lo; cp <= BASE_MIN(hi, '\\'); cp++)
        if (cp < 0x20 || cp == '"' || cp == '\\')
            out = gb_split(b, out, one_escaped(b, cp, next));
    return out;
}

/* ---- names that are none of a list ------------------------------------------------------------- */

struct names {
    const char *const *name;
    size_t count;
    uint32_t free_tail;      /* any characters up to the quote */
    uint32_t next;
};

/* The code points that the names go on with after `at` bytes, in rising order, each once. */
static size_t next_code_points(const struct names *n, const size_t *which, size_t count, size_t at,
                               uint32_t *ret)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const char *s = n->name[which[i]];
        uint32_t cp;
        if (s[at] == 0 || utf8_decode(s + at, strlen(s + at), &cp) == 0)
            continue;
        size_t k = found;
        while (k > 0 && ret[k - 1] >= cp)
            k--;
        if (k < found && ret[k] == cp)
            continue;
        memmove(ret + k + 1, ret + k, (found - k) * sizeof *ret);
        ret[k] = cp;
        found++;
    }
    return found;
}

static uint32_t plain_between(struct gbuild *b, uint32_t lo, uint32_t hi, uint32_t next)
{
    uint32_t out = GNODE_IDX_FAIL;
    static const struct grange plain[] = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x10ffff}};
    for (size_t i = 0; i < BASE_COUNT(plain); i++) {
        uint32_t l = BASE_MAX(lo, plain[i].lo), h = BASE_MIN(hi, plain[i].hi);
        if (l <= h)
            out = gb_split(b, out, gb_code_points(b, l, h, next));
    }
    return out;
}

/* What may follow when exactly the names of `which` agree with the first `at` bytes. */
static uint32_t other_after(struct gbuild *b, const struct names *n, const size_t *which, size_t count,
                            size_t at)
{
    struct arena a;
    bool is_name = false;
    uint32_t out = GNODE_IDX_FAIL, from = 0x20;
    if (count == 0)
        return n->free_tail;
    arena_init(&a, 4096);
    uint32_t *cps = arena_alloc(&a, (count + 1) * sizeof *cps);
    size_t *below = arena_alloc(&a, count * sizeof *below);
    size_t found = next_code_points(n, which, count, at, cps);
    for (size_t i = 0; i < count; i++)
        is_name |= n->name[which[i]][at] == 0;
    if (!is_name)
        out = gb_byte(b, '"', '"', n->next);
    for (size_t k = 0; k < found && !b->full; k++) {
        size_t m = 0;
        char text[4];
        unsigned len = utf8_encode(cps[k], text);
        for (size_t i = 0; i < count; i++)
            if (strncmp(n->name[which[i]] + at, text, len) == 0)
                below[m++] = which[i];
        if (cps[k] > from)
            out = gb_split(b, out, plain_between(b, from, cps[k] - 1, n->free_tail));
        if (cps[k] >= 0x20 && cps[k] != '"' && cps[k] != '\\')
            out = gb_split(b, out, gb_text(b, text, len, other_after(b, n, below, m, at + len)));
        from = BASE_MAX(from, cps[k] + 1);
    }
    out = gb_split(b, out, plain_between(b, from, 0x10ffff, n->free_tail));
    arena_done(&a);
    return out;
}

uint32_t gb_other_name(struct gbuild *b, const char *const *names, size_t count, uint32_t next)
{
    struct names n = {.name = names, .count = count, .next = next};
    struct arena a;
    if (count == 0)
        return gb_call(b, gb_json(b, GJSON_STRING), next);
    arena_init(&a, 4096);
    size_t *all = arena_alloc(&a, count * sizeof *all);
    for (size_t i = 0; i < count; i++)
        all[i] = i;
    /* No escapes: "\u0061" would be a second spelling of a name that is taken. */
    n.free_tail = gb_loop(b);
    gb_loop_set(b, n.free_tail, plain_char(b, n.free_tail), gb_byte(b, '"', '"', next));
    uint32_t out = gb_byte(b, '"', '"', other_after(b, &n, all, count, 0));
    arena_done(&a);
    return out;
}

/* ---- numbers ------------------------------------------------------------------------------------- */

static uint32_t digits(struct gbuild *b, uint32_t min, uint32_t max, uint32_t next)
{
    uint32_t out = next;
    for (uint32_t i = min; i < max; i++)
        out = gb_split(b, gb_byte(b, '0', '9', out), next);
    for (uint32_t i = 0; i < min; i++)
        out = gb_byte(b, '0', '9', out);
    return out;
}

static uint32_t integer(struct gbuild *b, uint32_t next)
{
    uint32_t some = gb_byte(b, '1', '9', digits(b, 0, DIGITS_INTEGER - 1, next));
    uint32_t out = gb_split(b, some, gb_byte(b, '0', '0', next));
    return gb_split(b, out, gb_byte(b, '-', '-', some));
}

static uint32_t number(struct gbuild *b, uint32_t next)
{
    uint32_t power = digits(b, 1, 2, next);
    uint32_t sign = gb_split(b, power, gb_split(b, gb_byte(b, '+', '+', power),
                                                gb_byte(b, '-', '-', power)));
    uint32_t exponent = gb_split(b, next, either(b, 'E', 'E', sign));
    uint32_t fraction = gb_byte(b, '.', '.', digits(b, 1, DIGITS_WHOLE, exponent));
    uint32_t after = gb_split(b, exponent, fraction);
    uint32_t whole = gb_split(b, gb_byte(b, '0', '0', after),
                              gb_byte(b, '1', '9', digits(b, 0, DIGITS_WHOLE - 1, after)));
    return gb_split(b, whole, gb_byte(b, '-', '-', whole));
}

/* Decimal numbers lo..hi >= 0 of exactly `width` digits, without leading zeros but for the one that
 * stands before a point. */
static uint32_t width_range(struct gbuild *b, uint64_t lo, uint64_t hi, unsigned width, unsigned point,
                            uint32_t next)
{
    char from[24], to[24];
    snprintf(from, sizeof from, "%0*llu", (int)width, (unsigned long long)lo);
    snprintf(to, sizeof to, "%0*llu", (int)width, (unsigned long long)hi);
    return gb_span(b, (const uint8_t *)from, (const uint8_t *)to, width, (struct gspan){'0', '9', point},
                   next);
}

static uint32_t unsigned_range(struct gbuild *b, uint64_t lo, uint64_t hi, unsigned point, uint32_t next)
{
    uint32_t out = GNODE_IDX_FAIL;
    uint64_t floor = 0, ceil = 9; /* of numbers as wide as `width` */
    for (unsigned i = 0; i < point; i++)
        ceil = ceil * 10 + 9;
    for (unsigned width = point + 1; width <= 19 && floor <= hi; width++) {
        uint64_t l = BASE_MAX(lo, floor), h = BASE_MIN(hi, ceil);
        if (l <= h)
            out = gb_split(b, out, width_range(b, l, h, width, point, next));
        floor = ceil + 1;
        ceil = width < 18 ? ceil * 10 + 9 : UINT64_MAX;
    }
    return out;
}

static uint64_t magnitude(int64_t v)
{
    return v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
}

uint32_t gb_int_range(struct gbuild *b, int64_t lo, int64_t hi, uint32_t next)
{
    uint32_t out = GNODE_IDX_FAIL;
    if (lo > hi)
        return out;
    if (hi >= 0)
        out = unsigned_range(b, lo > 0 ? (uint64_t)lo : 0, (uint64_t)hi, 0, next);
    if (lo < 0) {
        uint64_t least = hi < 0 ? magnitude(hi) : 1;
        out = gb_split(b, out, gb_byte(b, '-', '-', unsigned_range(b, least, magnitude(lo), 0, next)));
    }
    return out;
}

/* Magnitudes with a point; below the greatest, further digits stay inside the range. */
static uint32_t fraction_range(struct gbuild *b, uint64_t lo, uint64_t hi, unsigned point, uint32_t next)
{
    uint32_t more = digits(b, 0, DIGITS_WHOLE - BASE_MIN(point, DIGITS_WHOLE - 1), next);
    uint32_t out = unsigned_range(b, hi, hi, point, next);
    return lo < hi ? gb_split(b, out, unsigned_range(b, lo, hi - 1, point, more)) : out;
}

uint32_t gb_decimal_range(struct gbuild *b, int64_t lo, int64_t hi, unsigned point, uint32_t next)
{
    int64_t unit = 1;
    uint32_t out = GNODE_IDX_FAIL;
    if (lo > hi)
        return out;
    for (unsigned i = 0; i < point; i++)
        unit *= 10;
    int64_t first = lo / unit + (lo % unit > 0), last = hi / unit - (hi % unit < 0);
    out = gb_int_range(b, first, last, next);
    if (hi >= 0)
        out = gb_split(b, out, fraction_range(b, lo > 0 ? (uint64_t)lo : 0, (uint64_t)hi, point, next));
    if (lo < 0) {
        uint64_t least = hi < 0 ? magnitude(hi) : 0;
        uint32_t negative = fraction_range(b, least, magnitude(lo), point, next);
        out = gb_split(b, out, gb_byte(b, '-', '-', negative));
    }
    return out;
}

/* ---- values -------------------------------------------------------------------------------------- */

/* open, then `item`s with commas between, then close. */
static uint32_t list(struct gbuild *b, char open, char close, uint32_t item, uint32_t next)
{
    uint32_t end = gb_byte(b, (uint8_t)close, (uint8_t)close, next), more = gb_loop(b);
    uint32_t comma = gb_byte(b, ',', ',', gb_space(b, gb_call(b, item, more)));
    gb_loop_set(b, more, comma, gb_space(b, end));
    uint32_t first = gb_space(b, gb_split(b, end, gb_call(b, item, more)));
    return gb_byte(b, (uint8_t)open, (uint8_t)open, first);
}

static uint32_t object(struct gbuild *b)
{
    uint32_t member = gb_rule(b);
    uint32_t value = gb_byte(b, ':', ':', gb_space(b, gb_call(b, gb_json(b, GJSON_VALUE), GNODE_IDX_END)));
    gb_rule_set(b, member, gb_call(b, gb_json(b, GJSON_STRING), value));
    return list(b, '{', '}', member, GNODE_IDX_END);
}

static uint32_t value(struct gbuild *b)
{
    static const enum gjson kinds[] = {GJSON_STRING, GJSON_NUMBER, GJSON_OBJECT, GJSON_ARRAY};
    static const char *const words[] = {"true", "false", "null"};
    uint32_t out = GNODE_IDX_FAIL;
    for (size_t i = 0; i < BASE_COUNT(words); i++)
        out = gb_split(b, out, gb_text(b, words[i], strlen(words[i]), GNODE_IDX_END));
    for (size_t i = 0; i < BASE_COUNT(kinds); i++)
        out = gb_split(b, out, gb_call(b, gb_json(b, kinds[i]), GNODE_IDX_END));
    return out;
}

static uint32_t make(struct gbuild *b, enum gjson which)
{
    uint32_t end = GNODE_IDX_END;
    switch (which) {
    case GJSON_CHAR:
        return any_char(b, end);
    case GJSON_STRING:
        return gb_byte(b, '"', '"', gb_repeat(b, gb_json(b, GJSON_CHAR), 0, UINT32_MAX,
                                              gb_byte(b, '"', '"', end)));
    case GJSON_NUMBER:
        return number(b, end);
    case GJSON_INTEGER:
        return integer(b, end);
    case GJSON_OBJECT:
        return object(b);
    case GJSON_ARRAY:
        return list(b, '[', ']', gb_json(b, GJSON_VALUE), end);
    default:
        return value(b);
    }
}

uint32_t gb_json(struct gbuild *b, enum gjson which)
{
    if (b->json[which] == 0) {
        uint32_t rule = gb_rule(b);
        b->json[which] = rule + 1; /* before it is made: values hold values */
        gb_rule_set(b, rule, make(b, which));
    }
    return b->json[which] - 1;
}
