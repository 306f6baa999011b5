/* Hashes (XXH3 from the library) and the seeded random numbers (xoshiro256**). */
#include "base/base.h"

#include <string.h>
#include <xxhash.h>

struct hash128 hash128_of(const void *data, size_t len, uint64_t seed)
{
    XXH128_hash_t h = XXH3_128bits_withSeed(data, len, seed);
    return (struct hash128){.lo = h.low64, .hi = h.high64};
}

uint64_t hash64_of(const void *data, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, len, seed);
}

bool hash128_equal(struct hash128 a, struct hash128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

void hash128_format(struct hash128 h, char out[33])
{
    /* High half first, as the canonical form of XXH3-128 and `xxhsum -H2` print it. */
    (void)snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool hash128_parse(const char *hex, struct hash128 *ret)
{
    uint64_t half[2] = {0, 0};
    for (size_t i = 0; i < 32; i++) {
        int digit = hex_digit(hex[i]); /* a NUL is no digit: never reads past the end */
        if (digit < 0)
            return false;
        half[i / 16] = half[i / 16] << 4 | (uint64_t)digit;
    }
    if (hex[32] != '\0')
        return false;
    *ret = (struct hash128){.hi = half[0], .lo = half[1]};
    return true;
}

/* ---- random numbers ---- */

/* splitmix64: spreads one seed over the state, which must not be all zero (Blackman and Vigna,
 * "Scrambled linear pseudorandom number generators", section on seeding). */
static uint64_t splitmix(uint64_t *x)
{
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void rng_init(struct rng *r, uint64_t seed)
{
    for (size_t i = 0; i < 4; i++)
        r->s[i] = splitmix(&seed);
}

static uint64_t rotate(uint64_t x, unsigned k)
{
    return x << k | x >> (64 - k);
}

uint64_t rng_u64(struct rng *r)
{
    uint64_t *s = r->s;
    uint64_t ret = rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return ret;
}

double rng_f64(struct rng *r)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53;
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
    /* Lemire, "Fast random integer generation in an interval": multiply, and reject the few low
     * products that would make some results likelier than others. */
    unsigned __int128 m = (unsigned __int128)rng_u64(r) * n;
    if ((uint64_t)m < n) {
        uint64_t threshold = -n % n;
        while ((uint64_t)m < threshold)
            m = (unsigned __int128)rng_u64(r) * n;
    }
    return (uint64_t)(m >> 64);
}
