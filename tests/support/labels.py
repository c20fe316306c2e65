"""Label files as AudioSet and VGGSound publish them."""

from __future__ import annotations

from pathlib import Path

AUDIOSET = """\
# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=4, num_segs=4
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
-a.b-c_d.ef, 40.000, 50.000, "/m/068hy"
00W1lcxW-WU, 30.000, 40.000, "/m/07q6cd_"
abc_def-ghi, 30.000, 40.000, "/m/068hy"
"""
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/068hy,"Pets, domestic"\n2,/m/07q6cd_,"Squeak"\n'
VGGSOUND = """\
---g-f_I2yQ,1,"people marching",test
--0PQM4-hqg,30,waterfall burbling,train
--0PQM4-hqg,90,"people marching",train
KlsG1EnBEjc,361,"electric shaver, electric razor shaving",train
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
