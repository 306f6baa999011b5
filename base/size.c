/* Sizes as people write them ("1.5 GiB") and the alignment helper.
 *
 * Parsing is done in integers: strtod would round large byte counts and obey the locale's comma. */
#include "base/base.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

bool size_align(size_t v, size_t align, size_t *ret)
{
    size_t up;
    if (!size_add(v, align - 1, &up))
        return false;
    *ret = up & ~(align - 1);
    return true;
}

struct unit {
    const char *name;
    unsigned shift;
};

static const struct unit units[] = {
    {"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40},
};

static const struct unit *find_unit(const char *text, size_t len)
{
    for (size_t i = 0; i < BASE_COUNT(units); i++) {
        if (strlen(units[i].name) == len && strncasecmp(units[i].name, text, len) == 0)
            return &units[i];
    }
    return NULL;
}

/* Digits after the point as a fraction num/den; digits beyond 18 cannot change a 64-bit result by
 * a byte and are only checked. */
static const char *parse_fraction(const char *p, uint64_t *ret_num, uint64_t *ret_den)
{
    uint64_t num = 0, den = 1;
    for (unsigned digits = 0; isdigit((unsigned char)*p); p++, digits++) {
        if (digits < 18) {
            num = num * 10 + (uint64_t)(*p - '0');
            den *= 10;
        }
    }
    *ret_num = num;
    *ret_den = den;
    return p;
}

static const char *skip_blanks(const char *p)
{
    while (*p == ' ' || *p == '\t')
        p++;
    return p;
}

enum err_code size_parse(const char *text, uint64_t *ret_bytes, struct err *e)
{
    const char *p = skip_blanks(text);
    if (!isdigit((unsigned char)*p)) {
        return err_set(e, ERR_INVALID,
                       "'%.64s' is not a size: write a number and a unit, such as 512MiB or 4GiB",
                       text);
    }
    uint64_t whole = 0;
    for (; isdigit((unsigned char)*p); p++) {
        if (__builtin_mul_overflow(whole, (uint64_t)10, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*p - '0'), &whole))
            return err_set(e, ERR_INVALID, "size '%.64s' is larger than 64 bits can hold", text);
    }
    uint64_t num = 0, den = 1;
    bool has_point = *p == '.';
    if (has_point) {
        if (!isdigit((unsigned char)p[1]))
            return err_set(e, ERR_INVALID, "size '%.64s' has no digits after the point", text);
        p = parse_fraction(p + 1, &num, &den);
    }
    p = skip_blanks(p);
    size_t len = strlen(p);
    while (len > 0 && (p[len - 1] == ' ' || p[len - 1] == '\t'))
        len--;
    const struct unit *unit = find_unit(p, len);
    if (unit == NULL) {
        return err_set(e, ERR_INVALID,
                       "unknown unit in size '%.64s': use B, KiB, MiB, GiB or TiB (powers of 1024)",
                       text);
    }
    if (has_point && unit->shift == 0)
        return err_set(e, ERR_INVALID, "size '%.64s' is a fraction of a byte", text);
    unsigned __int128 bytes = (unsigned __int128)whole << unit->shift;
    bytes += ((unsigned __int128)num << unit->shift) / den;
    if (bytes > UINT64_MAX)
        return err_set(e, ERR_INVALID, "size '%.64s' is larger than 64 bits can hold", text);
    *ret_bytes = (uint64_t)bytes;
    return ERR_OK;
}

const char *size_format(uint64_t bytes, char *buf, size_t cap)
{
    static const char *const names[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        (void)snprintf(buf, cap, "%u B", (unsigned)bytes);
        return buf;
    }
    double v = (double)bytes / 1024;
    size_t i = 0;
    /* 1023.95 would print as 1024.0: go on to the next unit where the rounded figure needs it. */
    while (v >= 1023.95 && i + 1 < BASE_COUNT(names)) {
        v /= 1024;
        i++;
    }
    (void)snprintf(buf, cap, "%.1f %s", v, names[i]);
    return buf;
}
