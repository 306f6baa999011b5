/* The interpreter's arithmetic over blocks of lanes. Compiled twice, for the baseline and for
 * AVX2 with FMA (IR_OPS_INIT names the entry); every operation is exact or rounds once, so both
 * give the same bits. Nothing here knows bodies or graphs. */
#include <math.h>
#include <string.h>

#include "rdu/ir/interp.h"
#include "rdu/kernels/half.h"
#include "rdu/kernels/math.h"

#ifndef IR_OPS_INIT
#define IR_OPS_INIT ir_ops_base
#endif

/* d may equal an argument; then lane i only meets lane i, so there is nothing to order. */
#ifdef __clang__
#define LANES(i, n)                                                                                \
    _Pragma("clang loop vectorize(assume_safety)") for (uint32_t i = 0; i < (n); i++)
#else
#define LANES(i, n) _Pragma("GCC ivdep") for (uint32_t i = 0; i < (n); i++)
#endif

/* One function per variant: argument k is read at lane i, or at 0 if its bit is set. */
#define ONE(name, ret_t, a_t, expr)                                                                \
    static void name(void *d, const void *a, const void *b, const void *c, uint32_t n)             \
    {                                                                                              \
        ret_t *r = d;                                                                              \
        const a_t *pa = a;                                                                         \
        LANES(i, n)                                                                                \
        {                                                                                          \
            a_t x = pa[i];                                                                         \
            r[i] = (ret_t)(expr);                                                                  \
        }                                                                                          \
    }
#define TWO_(name, ret_t, a_t, ia, ib, expr)                                                       \
    static void name(void *d, const void *a, const void *b, const void *c, uint32_t n)             \
    {                                                                                              \
        ret_t *r = d;                                                                              \
        const a_t *pa = a, *pb = b, x0 = pa[0], y0 = pb[0];                                        \
        LANES(i, n)                                                                                \
        {                                                                                          \
            a_t x = ia ? x0 : pa[i], y = ib ? y0 : pb[i];                                          \
            r[i] = (ret_t)(expr);                                                                  \
        }                                                                                          \
    }
#define TWO(name, ret_t, a_t, expr)                                                                \
    TWO_(name##_vv, ret_t, a_t, 0, 0, expr)                                                        \
    TWO_(name##_sv, ret_t, a_t, 1, 0, expr)                                                        \
    TWO_(name##_vs, ret_t, a_t, 0, 1, expr)
#define THREE_(name, a_t, b_t, ia, ib, ic, expr)                                                   \
    static void name(void *d, const void *a, const void *b, const void *c, uint32_t n)             \
    {                                                                                              \
        b_t *r = d;                                                                                \
        const a_t *pa = a, x0 = pa[0];                                                             \
        const b_t *pb = b, *pc = c, y0 = pb[0], z0 = pc[0];                                        \
        LANES(i, n)                                                                                \
        {                                                                                          \
            a_t x = ia ? x0 : pa[i];                                                               \
            b_t y = ib ? y0 : pb[i], z = ic ? z0 : pc[i];                                          \
            r[i] = (expr);                                                                         \
        }                                                                                          \
    }
#define THREE(name, a_t, b_t, expr)                                                                \
    THREE_(name##_0, a_t, b_t, 0, 0, 0, expr)                                                      \
    THREE_(name##_1, a_t, b_t, 1, 0, 0, expr)                                                      \
    THREE_(name##_2, a_t, b_t, 0, 1, 0, expr)                                                      \
    THREE_(name##_3, a_t, b_t, 1, 1, 0, expr)                                                      \
    THREE_(name##_4, a_t, b_t, 0, 0, 1, expr)                                                      \
    THREE_(name##_5, a_t, b_t, 1, 0, 1, expr)                                                      \
    THREE_(name##_6, a_t, b_t, 0, 1, 1, expr)

/* SELECT moves bits of any type. */
typedef int32_t __attribute__((may_alias)) bits32;

/* Wrapping i32 arithmetic; division and remainder by zero give 0, as folding must never trap. */
#define WRAP(op) (int32_t)((uint32_t)x op (uint32_t)y)
#define DIVISOR (y == 0 || (y == -1 && x == INT32_MIN))

TWO(add_f, float, float, x + y)
TWO(sub_f, float, float, x - y)
TWO(mul_f, float, float, x *y)
TWO(div_f, float, float, x / y)
TWO(max_f, float, float, y > x ? y : x)
TWO(min_f, float, float, y < x ? y : x)
TWO(add_i, int32_t, int32_t, WRAP(+))
TWO(sub_i, int32_t, int32_t, WRAP(-))
TWO(mul_i, int32_t, int32_t, WRAP(*))
TWO(div_i, int32_t, int32_t, DIVISOR ? 0 : x / y)
TWO(mod_i, int32_t, int32_t, DIVISOR ? 0 : x % y)
TWO(max_i, int32_t, int32_t, y > x ? y : x)
TWO(min_i, int32_t, int32_t, y < x ? y : x)
TWO(lt_f, int32_t, float, x < y)
TWO(le_f, int32_t, float, x <= y)
TWO(eq_f, int32_t, float, x == y)
TWO(lt_i, int32_t, int32_t, x < y)
TWO(le_i, int32_t, int32_t, x <= y)
TWO(eq_i, int32_t, int32_t, x == y)
TWO(and_b, int32_t, int32_t, x &y)
TWO(or_b, int32_t, int32_t, x | y)
ONE(neg_f, float, float, -x)
ONE(neg_i, int32_t, int32_t, (int32_t)(0u - (uint32_t)x))
ONE(abs_f, float, float, __builtin_fabsf(x))
ONE(abs_i, int32_t, int32_t, x < 0 ? (int32_t)(0u - (uint32_t)x) : x)
ONE(sqrt_f, float, float, __builtin_sqrtf(x))
ONE(exp_f, float, float, rdu_expf(x))
ONE(tanh_f, float, float, rdu_tanhf(x))
ONE(log_f, float, float, rdu_logf(x))
ONE(rint_f, float, float, __builtin_rintf(x))
ONE(not_b, int32_t, int32_t, !x)
ONE(to_f32, float, int32_t, (float)x)
/* Out of range and not-a-number give INT32_MIN, as the machine's conversion does. */
ONE(to_i32, int32_t, float, x >= -2147483648.0f && x < 2147483648.0f ? (int32_t)x : INT32_MIN)
THREE(fma_f, float, float, __builtin_fmaf(x, y, z))
THREE(select_x, int32_t, bits32, x ? y : z)

static void copy(void *d, const void *a, uint32_t n)
{
    memcpy(d, a, n * sizeof(int32_t));
}

static void fill(void *d, const void *a, uint32_t n)
{
    int32_t *r = d, v;
    memcpy(&v, a, sizeof(v));
    LANES(i, n) r[i] = v;
}

static void widen(int32_t *d, const int8_t *a, uint32_t n)
{
    LANES(i, n) d[i] = a[i];
}

static void narrow(int8_t *d, const int32_t *a, uint32_t n)
{
    LANES(i, n) d[i] = (int8_t)a[i];
}

static void halves(float *d, const uint16_t *a, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        d[i] = rdu_half_load(a[i]);
}

static void sum16(float *acc, const float *a, uint32_t n)
{
    float lane[16];
    memcpy(lane, acc, sizeof(lane));
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (uint32_t j = 0; j < 16; j++)
            lane[j] = lane[j] + a[i + j];
    }
    for (uint32_t j = 0; i + j < n; j++)
        lane[j] = lane[j] + a[i + j];
    memcpy(acc, lane, sizeof(lane));
}

static void max16(float *acc, const float *a, uint32_t n)
{
    float lane[16];
    memcpy(lane, acc, sizeof(lane));
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (uint32_t j = 0; j < 16; j++)
            lane[j] = a[i + j] > lane[j] ? a[i + j] : lane[j];
    }
    for (uint32_t j = 0; i + j < n; j++)
        lane[j] = a[i + j] > lane[j] ? a[i + j] : lane[j];
    memcpy(acc, lane, sizeof(lane));
}

static void set_two(struct ir_ops *o, uint32_t code, uint32_t type, ir_ops_fn *vv, ir_ops_fn *sv,
                    ir_ops_fn *vs)
{
    ir_ops_fn **fn = o->fn[code][type];
    fn[0] = fn[4] = vv;
    fn[1] = fn[5] = sv;
    fn[2] = fn[6] = vs;
}

static void set_one(struct ir_ops *o, uint32_t code, uint32_t type, ir_ops_fn *f)
{
    for (int i = 0; i < 8; i++)
        o->fn[code][type][i] = f;
}

#define SET_TWO(code, type, name) set_two(o, code, type, name##_vv, name##_sv, name##_vs)
#define SET_THREE(code, type, name)                                                                \
    do {                                                                                           \
        ir_ops_fn *const f[8] = {name##_0, name##_1, name##_2, name##_3,                           \
                                 name##_4, name##_5, name##_6, NULL};                              \
        memcpy(o->fn[code][type], f, sizeof(f));                                                   \
    } while (0)

static void set_float(struct ir_ops *o)
{
    const uint32_t t = IR_TYPE_F32;
    SET_TWO(IR_ADD, t, add_f);
    SET_TWO(IR_SUB, t, sub_f);
    SET_TWO(IR_MUL, t, mul_f);
    SET_TWO(IR_DIV, t, div_f);
    SET_TWO(IR_MAX, t, max_f);
    SET_TWO(IR_MIN, t, min_f);
    SET_TWO(IR_LT, t, lt_f);
    SET_TWO(IR_LE, t, le_f);
    SET_TWO(IR_EQ, t, eq_f);
    SET_THREE(IR_FMA, t, fma_f);
    set_one(o, IR_NEG, t, neg_f);
    set_one(o, IR_ABS, t, abs_f);
    set_one(o, IR_SQRT, t, sqrt_f);
    set_one(o, IR_EXP, t, exp_f);
    set_one(o, IR_TANH, t, tanh_f);
    set_one(o, IR_LOG, t, log_f);
    set_one(o, IR_RINT, t, rint_f);
    set_one(o, IR_TO_I32, t, to_i32);
}

static void set_int(struct ir_ops *o)
{
    const uint32_t t = IR_TYPE_I32;
    SET_TWO(IR_ADD, t, add_i);
    SET_TWO(IR_SUB, t, sub_i);
    SET_TWO(IR_MUL, t, mul_i);
    SET_TWO(IR_DIV, t, div_i);
    SET_TWO(IR_MOD, t, mod_i);
    SET_TWO(IR_MAX, t, max_i);
    SET_TWO(IR_MIN, t, min_i);
    SET_TWO(IR_LT, t, lt_i);
    SET_TWO(IR_LE, t, le_i);
    SET_TWO(IR_EQ, t, eq_i);
    set_one(o, IR_NEG, t, neg_i);
    set_one(o, IR_ABS, t, abs_i);
    set_one(o, IR_TO_F32, t, to_f32);
}

void IR_OPS_INIT(struct ir_ops *o)
{
    memset(o, 0, sizeof(*o));
    set_float(o);
    set_int(o);
    SET_TWO(IR_AND, IR_TYPE_BOOL, and_b);
    SET_TWO(IR_OR, IR_TYPE_BOOL, or_b);
    SET_TWO(IR_EQ, IR_TYPE_BOOL, eq_i);
    set_one(o, IR_NOT, IR_TYPE_BOOL, not_b);
    SET_THREE(IR_SELECT, IR_TYPE_BOOL, select_x);
    o->copy = copy;
    o->fill = fill;
    o->widen = widen;
    o->narrow = narrow;
    o->halves = halves;
    o->sum16 = sum16;
    o->max16 = max16;
}
