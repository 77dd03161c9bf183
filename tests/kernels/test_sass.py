"""Instructions of the usual path in a listing of nvdisasm."""

from __future__ import annotations

from tests.kernels import sass

LISTING = """
        .section        .text.mine
.text.mine:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   CS2R R88, SRZ ;
.L_x_1:
        /*0020*/              @!P6 LDGSTS.E.BYPASS.128 [R4], desc[UR6][R2.64] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R88, gdesc[UR4], R88 ;
        /*0040*/              @!P6 BRA `(.L_x_1) ;
        /*0050*/              @!P4 BRA `(.L_x_2) ;
MANY
.L_x_2:
        /*0060*/              @!P0 BRA `(.L_x_3) ;
        /*0070*/                   REDG.E.MAX.S64.STRONG.GPU desc[UR18][R16.64], R18 ;
.L_x_3:
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   BRA `(.L_x_4);
        /*00a0*/                   NOP;
"""


def test_a_long_block_that_a_branch_skips_is_left_out():
    code = LISTING.replace("MANY", "        FSEL R1, R2, -INF , P0 ;\n" * 64)
    assert sass.operations(code)["FSEL"] == 64
    once, step = sass.usual_path(code)
    assert step == {"LDGSTS": 1, "HGMMA": 1, "BRA": 1}
    assert once == {"LDC": 1, "CS2R": 1, "BRA": 3, "REDG": 1, "EXIT": 1, "NOP": 1}


def test_a_short_one_counts():
    code = LISTING.replace("MANY", "        FSEL R1, R2, -INF , P0 ;\n" * 63)
    assert sass.usual_path(code)[0]["FSEL"] == 63
